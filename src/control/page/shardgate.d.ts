/** Types of shardgate.js, the client of the shardgate WebSocket gateway. */

/**
 * - `idle`: `open()` was not called yet.
 * - `connecting`: a connection is being made, and its session is not ready yet.
 * - `open`: messages are sent as they come.
 * - `away`: the connection broke; the next try comes by itself. Messages wait in the queue.
 * - `closed`: by `close()`, or for good by the gateway; only `open()` leads out of it.
 */
export type State = "idle" | "connecting" | "open" | "away" | "closed";

/** Why a token is wanted: the first one; the last one has expired; the last one was refused. */
export type TokenReason = "first" | "expired" | "bad";

export interface Options {
  /**
   * JSON Web Token, or a function that gets one. The function is called before the first
   * connection, and again if the gateway closes with 4004 or 4500, once each time. If it rejects,
   * or its answer to "bad" is refused, too, the gate is closed. Without it, or if it gives `null`,
   * the client is anonymous.
   */
  token?: string | ((why: TokenReason) => string | null | Promise<string | null>);
  /** Whether the session survives a broken connection, if the gateway can do that. Default true. */
  resume?: boolean;
  /**
   * Pause before the connection number n after a break: random from 0 to
   * `min(maxMs, minMs * 2 ** n)`. Default 500 and 20,000 ms.
   */
  reconnect?: { minMs?: number; maxMs?: number };
  /** Time that a request has from its call to its answer. Default 5,000 ms. */
  timeoutMs?: number;
  /**
   * Bounds of what waits for a connection, or for room in flight: messages, bytes of their JSON,
   * and time of each. Default 100, 65,536 and 30,000 ms.
   */
  queue?: { items?: number; bytes?: number; maxAgeMs?: number };
  /** First id that the gateway answers itself: its key `gateway.ids`. Default 9000. */
  gatewayIds?: number;
  /** Class of WebSockets. Default: that of the platform. */
  WebSocket?: WebSocketClass;
  /**
   * Tells of `online`, `offline`, `pagehide` and `pageshow`, and its `document`, if there is one,
   * of `visibilitychange`. Default: `globalThis`; `null` for nothing of that.
   */
  network?: Network | null;
  /** Keeps the session over a reload of the page: `sessionStorage`. Default: nothing. */
  persist?: Persist;
}

/** The part of WebSocket that is used. */
export interface WebSocketLike {
  readonly bufferedAmount?: number;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(data: string): void;
  close(code?: number, reason?: string): void;
}

export type WebSocketClass = new (url: string, protocols: string[]) => WebSocketLike;

/** The part of a window that is used. */
export interface Network {
  addEventListener?(event: string, listener: (event: any) => void): void;
  removeEventListener?(event: string, listener: (event: any) => void): void;
  document?: {
    readonly visibilityState: string;
    addEventListener(event: string, listener: (event: any) => void): void;
    removeEventListener(event: string, listener: (event: any) => void): void;
  };
}

/** The part of Storage that is used. */
export interface Persist {
  getItem(name: string): string | null;
  setItem(name: string, value: string): void;
  removeItem(name: string): void;
}

export interface RequestOptions {
  /**
   * Marks what the message does, at most 64 bytes: the gateway runs one `id` of a signed-in user
   * once while it remembers it. `true`: a new random one. A request with an `id` is sent again
   * after `lost`; one without is rejected.
   */
  id?: string | true;
  /** Chooses the instance on routes with `hash_on = "key"`, at most 128 bytes. */
  key?: string;
  /** Time from the call to the answer, in ms. Default: that of the gate. */
  timeoutMs?: number;
  /** Ends the wait; the message may run all the same. */
  signal?: AbortSignal;
}

export interface SendOptions {
  /** As of a request; nothing is sent again. */
  id?: string;
  /** As of a request. */
  key?: string;
  /** Whether the message is dropped where it would have to wait. */
  volatile?: boolean;
}

/** What the gateway says of the session. */
export interface Session {
  readonly id: string;
  /** Empty: anonymous. */
  readonly user: string;
  /** Empty: there is one only. */
  readonly tenant: string;
  /** Time at which the token expires, in seconds since 1970; 0: there is none. */
  readonly expiresUnixS: number;
  readonly node: string;
  readonly shard: number;
  /** Whether the session survives a broken connection. */
  readonly isResumable: boolean;
  /** Time for which it does, in ms. */
  readonly ttlMs: number;
}

/** `reason` is empty for `resumed`; else OVERFLOW, ENCODING; EXPIRED, RESTARTED, ENDED … */
export interface Outcome {
  readonly session: string;
  readonly reason: string;
  /** Of `gap`, for pushes that this client was too slow for: how many; 0: not known. */
  readonly dropped?: number;
}

/** A message of the gateway that answers nothing: a push, if its type is `push`. */
export interface ServerMessage {
  readonly type: string;
  readonly msgId: number;
  readonly payload: any;
  /** Place in the session, or, with a group, among the group's pushes; absent: it has none. */
  readonly offset?: number;
  /** Group that it went to; absent: it is for this session, its user, a tenant or everyone. */
  readonly group?: string;
  /** Id that the pusher gave it. */
  readonly id?: string;
  /** User or session that published it; absent: a service did. */
  readonly from?: string;
}

/** Place in the pushes of a group: of the last one whose listeners have ended. */
export interface Position {
  readonly epoch: string;
  readonly offset: number;
}

/** Pushes of a group that are missing for good; `dropped` is 0 if their number is not known. */
export interface GroupGap {
  readonly group: string;
  readonly dropped: number;
  readonly position?: Position;
  readonly reason: string;
}

/** A user, or a session that is not signed in: its `user` is empty. */
export interface Person {
  readonly user: string;
  readonly session: string;
  /** What a service said of it. */
  readonly info?: any;
  /** Whether it was without a connection when it was asked; of who came later, false. */
  readonly away: boolean;
}

/** Who is in a group: all of them, and who came and went since the last time. */
export interface Presence {
  readonly count: number;
  /** Empty where the group's rule does not tell names, or for so many. */
  readonly people: readonly Person[];
  readonly joined: readonly Person[];
  readonly left: readonly Person[];
}

/** A push that the gateway has kept. */
export interface Kept extends Omit<ServerMessage, "type" | "group"> {
  readonly offset: number;
  readonly key: string;
  /** Time at which it came to the gateway, in milliseconds since 1970. */
  readonly unixMs: number;
}

/** What listeners of a group get. */
export interface GroupEvents {
  /** A push to the group. Its position moves when the listener's promise has settled. */
  push: [push: ServerMessage];
  gap: [gap: GroupGap];
  /** Only with the option `presence`. */
  presence: [presence: Presence];
  /** The session is in the group, by `join()`, by its token, or by a service. */
  joined: [group: Group];
  /** It is not in the group any more. `reason` is empty after `leave()`. */
  left: [left: { readonly group: string; readonly reason: string }];
}

export interface GroupOptions {
  /** Whether to be told who is there. Default false. */
  presence?: boolean;
  /** Begin after this push: a `position` that was saved. Default: with the next one. */
  since?: Position;
}

/** A group, whether the session is in it or not. */
export interface Group {
  readonly name: string;
  /** To be saved with the state that it belongs to; absent while the session is not in the group. */
  readonly position: Position | undefined;
  /** Adds a listener, for all connections to come; returns what takes it away. */
  on<E extends keyof GroupEvents>(
    event: E,
    listener: (...what: GroupEvents[E]) => unknown,
  ): () => void;
  /** Goes into the group, and stays there over breaks and restarts, until `leave()` or `left`. */
  join(): Promise<unknown>;
  leave(): Promise<unknown>;
  /**
   * Pushes to the members, as far as the group's rule allows. `key`: a newer push with the same key
   * takes the place of one that was not delivered yet. `toMe`: this session gets it, too.
   */
  publish(
    msgId: number,
    payload?: unknown,
    options?: Omit<RequestOptions, "key"> & { key?: string; toMe?: boolean },
  ): Promise<Position>;
  /** Lists members, a page at a time: `after` is the `next` of the page before. */
  members(page?: { limit?: number; after?: string }): Promise<{
    readonly members: readonly Person[];
    /** Empty: this was the last page. */
    readonly next: string;
    readonly count: number;
  }>;
  /**
   * Pushes that the gateway has kept, the oldest first unless `newestFirst`. `limit` is 100 if none
   * is given; with 0 the position alone comes. `gap`: not all after `since` are kept.
   */
  history(page?: { since?: Position; limit?: number; newestFirst?: boolean }): Promise<{
    readonly position: Position;
    readonly gap: boolean;
    readonly pushes: readonly Kept[];
  }>;
}

/** What listeners of each event get. */
export interface Events {
  /** `error` says why, for `away` and `closed`. */
  state: [state: State, error?: GatewayError];
  /** The session goes on, and nothing is missing. */
  resumed: [outcome: Outcome];
  /** The session goes on, and some of its messages are missing for good. */
  gap: [outcome: Outcome];
  /** The session has ended, and another one has begun. */
  lost: [outcome: Outcome];
  /** The gateway stops soon; new messages wait for the next connection. */
  draining: [notice: { readonly reconnectAfterMs: number }];
  /** A listener threw this, or the gateway said it of no request. */
  error: [error: unknown];
  /** The session is in this group, by whatever way. */
  joined: [group: Group];
  /** It is not any more. */
  left: [left: { readonly group: string; readonly reason: string }];
  /**
   * A message that answers nothing, and a push that has no listener of its own. Its offset is acked
   * when the listener's promise has settled.
   */
  message: [message: ServerMessage];
}

/** Why a request has no answer. */
export class GatewayError extends Error {
  readonly name: "GatewayError";
  constructor(
    reason: string,
    message: string,
    more?: Partial<
      Pick<GatewayError, "status" | "retryAfterMs" | "maybeRan" | "code" | "payload" | "cause">
    >,
  );
  /** gRPC status code. */
  readonly status: number;
  /**
   * Reason of the gateway, or of this library: TIMEOUT, ABORTED, LOST, EXPIRED, QUEUE_FULL,
   * TOO_LARGE, BAD_MESSAGE, BROKEN, CLOSED. Empty: the service itself answered with `status`.
   */
  readonly reason: string;
  /** After this time the same request can succeed; 0: the gateway said none. */
  readonly retryAfterMs: number;
  /** Whether a service may have run the message. */
  readonly maybeRan: boolean;
  /** Close code of the connection, for `state` and for a gate that was closed; else 0. */
  readonly code: number;
  /** Payload of an answer with a status. */
  readonly payload?: unknown;
  readonly cause?: unknown;
}

/** A session with a gateway, over as many connections as it takes. */
export class Gateway {
  constructor(url: string | URL, options?: Options);
  readonly state: State;
  /** Of the last connection; absent until it was open. */
  readonly session: Session | undefined;
  /** Connects, and keeps connected. Resolves with the first session; rejects if there is none. */
  open(): Promise<void>;
  /** Leaves: the session ends, and what waits for an answer is rejected with CLOSED. */
  close(): void;
  /** Breaks the connection as a network does, and comes back. For tests. */
  cut(): void;
  /** Adds a listener, for all connections to come; returns what takes it away. */
  on<E extends keyof Events>(event: E, listener: (...what: Events[E]) => unknown): () => void;
  /**
   * Asks a service; gives the payload of its answer, bytes as Uint8Array. The payload is a value
   * that JSON can hold, or, on routes with `payload = "bytes"`, a Uint8Array.
   */
  request<T = any>(msgId: number, payload?: unknown, options?: RequestOptions): Promise<T>;
  /**
   * Adds a listener for pushes with this id, to whomever they are; returns what takes it away. The
   * push is acked when the listener's promise has settled.
   */
  onPush(msgId: number, listener: (push: ServerMessage) => unknown): () => void;
  /** The group of this name: always the same object. */
  group(name: string, options?: GroupOptions): Group;
  /**
   * Sends a message that is not answered. False: it was dropped, because the queue is full, more
   * than `queue.bytes` wait for the network, the gate is closed, or it is `volatile` and would
   * have to wait. True is no proof of arrival.
   */
  send(msgId: number, payload?: unknown, options?: SendOptions): boolean;
}
