//! Programs that push: over HTTP/1.1 with keep-alive, and by the generated gRPC client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use shardgate::wire::push::generated::push_client::PushClient;
use shardgate::wire::push::generated::{PushMessage, PushResult, SendRequest};
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::support::{Gateway, PATIENCE};

/// Address of the doors.
#[track_caller]
pub fn doors(gateway: &Gateway) -> SocketAddr {
    let stats = gateway.admin_get("/stats");
    let address = stats["push"]["address"].as_str().expect("the doors are open");
    address.parse().expect("an address")
}

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub json: Value,
}

impl Answer {
    /// Value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A connection to the doors, kept for all requests.
pub struct Http {
    stream: TcpStream,
    unread: Vec<u8>,
    token: &'static str,
}

impl Http {
    /// Connects as the caller with this token; empty = with none.
    #[track_caller]
    pub fn connect(gateway: &Gateway, token: &'static str) -> Self {
        let stream = TcpStream::connect(doors(gateway)).expect("the doors are open");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("an option");
        Self { stream, unread: Vec::new(), token }
    }

    /// Sends a request with these header lines, and reads its answer.
    #[track_caller]
    pub fn request(&mut self, line: &str, headers: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!(
            "{line} HTTP/1.1\r\nHost: localhost\r\n{headers}Content-Length: {length}\r\n\r\n"
        );
        let whole = [head.as_bytes(), body].concat();
        // The gateway may answer and close before it has read all of a body that is too large.
        let _ = self.stream.write_all(&whole);
        self.answer()
    }

    #[track_caller]
    fn answer(&mut self) -> Answer {
        let head = loop {
            if let Some(end) = self.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head: Vec<u8> = self.unread.drain(..end + 4).collect();
                break String::from_utf8(head).expect("ASCII");
            }
            self.more();
        };
        let status = head.split(' ').nth(1).expect("a status line").parse().expect("a code");
        let mut answer = Answer { status, head, json: Value::Null };
        let length: usize = answer.header("content-length").map_or(0, |n| n.parse().expect("n"));
        while self.unread.len() < length {
            self.more();
        }
        let body: Vec<u8> = self.unread.drain(..length).collect();
        answer.json = serde_json::from_slice(&body).unwrap_or_default();
        answer
    }

    #[track_caller]
    fn more(&mut self) {
        let mut chunk = [0; 16 << 10];
        let n = self.stream.read(&mut chunk).expect("an answer in time");
        assert!(n > 0, "closed: {:?}", String::from_utf8_lossy(&self.unread));
        self.unread.extend_from_slice(&chunk[..n]);
    }

    /// Sends a body to `/push`.
    #[track_caller]
    pub fn post(&mut self, body: &str) -> Answer {
        self.post_to("/push", body)
    }

    /// Sends a body to a path.
    #[track_caller]
    pub fn post_to(&mut self, path: &str, body: &str) -> Answer {
        let bearer = match self.token {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        let headers = format!("{bearer}Content-Type: application/json\r\n");
        self.request(&format!("POST {path}"), &headers, body.as_bytes())
    }

    /// Makes a call besides pushes, which must succeed, and gives its answer.
    #[track_caller]
    pub fn call(&mut self, path: &str, asked: &Value) -> Value {
        let answer = self.post_to(path, &asked.to_string());
        assert_eq!(answer.status, 200, "{path} {asked}: {answer:?}");
        answer.json
    }

    /// Sends pushes, and gives the result of each.
    #[track_caller]
    pub fn push(&mut self, pushes: Vec<Value>) -> Vec<Value> {
        let count = pushes.len();
        let answer = self.post(&json!({ "pushes": pushes }).to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
        let results = answer.json["results"].as_array().cloned().unwrap_or_default();
        assert_eq!(results.len(), count, "one result each: {answer:?}");
        results
    }

    /// Sends one push, which must be taken, and gives its result.
    #[track_caller]
    pub fn sends(&mut self, push: Value) -> Value {
        let result = self.push(vec![push]).remove(0);
        assert_eq!(result.get("status"), None, "{result}");
        result
    }
}

/// The generated client, and the runtime in which it runs.
pub struct Grpc {
    runtime: Runtime,
    client: PushClient<Channel>,
    token: &'static str,
}

impl Grpc {
    /// A client that shows this token; empty = none.
    #[track_caller]
    pub fn connect(gateway: &Gateway, token: &'static str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let endpoint = Endpoint::new(format!("http://{}", doors(gateway))).expect("a URL");
        let client = runtime.block_on(async move { PushClient::new(endpoint.connect_lazy()) });
        Self { runtime, client, token }
    }

    /// Makes a call: `|client, request| client.join(request)`.
    pub fn call<T, R>(
        &mut self,
        message: T,
        call: impl AsyncFnOnce(&mut PushClient<Channel>, Request<T>) -> Result<Response<R>, Status>,
    ) -> Result<R, Status> {
        let mut request = Request::new(message);
        request.set_timeout(PATIENCE);
        if !self.token.is_empty() {
            let bearer = format!("Bearer {}", self.token).parse().expect("ASCII");
            request.metadata_mut().insert("authorization", bearer);
        }
        self.runtime.block_on(call(&mut self.client, request)).map(Response::into_inner)
    }

    /// Sends pushes.
    pub fn send(&mut self, pushes: Vec<PushMessage>) -> Result<Vec<PushResult>, Status> {
        let sent =
            self.call(SendRequest { pushes }, async |client, request| client.send(request).await);
        sent.map(|response| response.results)
    }
}
