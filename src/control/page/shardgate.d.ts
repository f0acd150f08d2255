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
}

/** A message of the gateway that answers nothing. */
export interface ServerMessage {
  readonly type: string;
  readonly msgId: number;
  readonly payload: unknown;
  readonly offset?: number;
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
  /** A message that answers nothing. Its offset is acked when the listener's promise has settled. */
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
   * Sends a message that is not answered. False: it was dropped, because the queue is full, more
   * than `queue.bytes` wait for the network, the gate is closed, or it is `volatile` and would
   * have to wait. True is no proof of arrival.
   */
  send(msgId: number, payload?: unknown, options?: SendOptions): boolean;
}
