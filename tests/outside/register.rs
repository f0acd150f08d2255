//! A service in Python registers itself: the example that users copy.

use std::net::TcpListener;
use std::time::Duration;

use shardgate::config::settings::{RegistryCaller, RegistrySettings};
use shardgate::control::discovery::registry::{Handle, serve};
use shardgate::control::discovery::{NEWS_MAX, News, SourceEvent};
use tokio::sync::mpsc;

use crate::support::{Checkout, PATIENCE, Running, available, succeeds};

const TOKEN: &str = "0123456789abcdef";

fn settings() -> RegistrySettings {
    RegistrySettings {
        listen: ([127, 0, 0, 1], 0).into(),
        tls_cert: None,
        tls_key: None,
        callers: vec![RegistryCaller {
            name: "python".into(),
            token: Some(TOKEN.into()),
            token_file: None,
            services: vec!["logic".into()],
        }],
    }
}

/// A registry on `listener`, and its news.
fn start(listener: TcpListener) -> (Handle, mpsc::Receiver<News>) {
    let (sender, news) = mpsc::channel(NEWS_MAX);
    (serve(listener, &settings(), sender).expect("it can start"), news)
}

/// Names and addresses of the next contents.
async fn known(news: &mut mpsc::Receiver<News>) -> Vec<String> {
    let told = tokio::time::timeout(PATIENCE, news.recv()).await;
    let event = told.expect("news in time").expect("it runs").event;
    let SourceEvent::Contents { contents, by } = event else { panic!("{event:?}") };
    assert_eq!(&*by, "python");
    contents.instances.iter().map(|i| format!("{} {}", i.name, i.addresses)).collect()
}

#[tokio::test]
async fn a_python_service_registers_survives_a_restart_of_the_gateway_and_leaves() {
    let test = "a_python_service_registers_survives_a_restart_of_the_gateway_and_leaves";
    let found = succeeds("python3", &["-c", "import grpc, grpc_tools.protoc"]);
    if !available(test, "python3 with grpcio and grpcio-tools", found) {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let again = listener.try_clone().expect("a descriptor");
    let (handle, mut news) = start(listener);
    let line = format!(
        "SHARDGATE_TOKEN={TOKEN} exec python3 tests/interop/register.py {address} \
         logic logic-1 10.0.0.7:50001"
    );
    let checkout = Checkout::new();
    let mut command = checkout.shell(&line);
    let service = tokio::task::spawn_blocking(move || Running::start(&mut command, "registered"))
        .await
        .expect("it registers");
    assert_eq!(known(&mut news).await, ["logic-1 10.0.0.7:50001"]);
    // The time to live is 3 s: nothing changes for longer than that, so the heartbeats come.
    let quiet = tokio::time::timeout(Duration::from_millis(3_500), news.recv()).await;
    assert!(quiet.is_err(), "{quiet:?}");

    // A gateway that starts again has no leases: the service learns that by its heartbeat.
    drop(handle);
    assert!(news.recv().await.is_none(), "it stops");
    let (_handle, mut news) = start(again);
    assert_eq!(known(&mut news).await, ["logic-1 10.0.0.7:50001"]);

    let stopped = tokio::task::spawn_blocking(move || service.stop()).await;
    assert_eq!(stopped.expect("it ends").code(), Some(0));
    assert_eq!(known(&mut news).await, Vec::<String>::new());
}
