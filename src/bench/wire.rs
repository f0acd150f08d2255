//! The transport of a connection: a socket that never blocks, with TLS or without.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use super::fault::Fault;

/// A transport.
#[derive(Debug)]
pub enum Wire {
    /// Without TLS.
    Plain(TcpStream),
    /// With TLS; the handshake is part of the first writes and reads.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Wire {
    /// Begins to connect to `to`, from the address `from` if there is one. With `tls` the name is
    /// that of the certificate.
    pub fn open(
        to: SocketAddr,
        from: Option<IpAddr>,
        tls: Option<(&Arc<ClientConfig>, &str)>,
    ) -> Result<Self, Fault> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(to), kind, None).map_err(Fault::of)?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::new(from, 0).into()).map_err(Fault::of)?;
        }
        socket.set_tcp_nodelay(true).map_err(Fault::of)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => {
                return Err(Fault::of(error));
            }
            Ok(()) | Err(_) => {}
        }
        let stream = TcpStream::from(socket);
        let Some((config, name)) = tls else { return Ok(Self::Plain(stream)) };
        let bad = |what: String| Fault::Tls(what);
        let name = ServerName::try_from(name.to_owned()).map_err(|e| bad(e.to_string()))?;
        let connection = ClientConnection::new(config.clone(), name);
        let connection = connection.map_err(|error| bad(error.to_string()))?;
        Ok(Self::Tls(Box::new(StreamOwned::new(connection, stream))))
    }

    /// Reads what is there; `WouldBlock` if there is nothing, 0 at the end.
    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes),
            Self::Tls(stream) => match stream.read(bytes) {
                // Many servers end without the alert that TLS asks for.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
                other => other,
            },
        }
    }

    /// Writes as much as is taken; `WouldBlock` if nothing is.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => match stream.write(bytes)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                taken => Ok(taken),
            },
        }
    }

    /// Writes what TLS has kept back, as far as it is taken.
    pub fn push(&mut self) -> io::Result<()> {
        match self {
            Self::Tls(stream) if stream.conn.wants_write() => match stream.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                other => other,
            },
            Self::Plain(_) | Self::Tls(_) => Ok(()),
        }
    }

    /// Whether a read that did not fill the buffer took everything.
    pub fn is_emptied_by_short_reads(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Error with which connecting ended, if it did.
    pub fn connect_error(&self) -> Option<io::Error> {
        self.stream().take_error().ok().flatten()
    }

    fn stream(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream().as_fd()
    }
}
