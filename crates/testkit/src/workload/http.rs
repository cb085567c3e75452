//! As much of HTTP/1.1 as the bank needs: requests without bodies, short answers, kept
//! connections, and the switch to WebSocket.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use tungstenite::WebSocket;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::Role;

/// What the gateway marks a request in flight with. A request that the application makes on account
/// of another carries the other's.
pub(super) const IN_FLIGHT: &str = "x-stillpoint-in-flight";

/// One request's head.
pub(super) struct Request {
    pub(super) path: String,
    fields: Vec<(String, String)>,
}

impl Request {
    /// A field, by its lower-case name.
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A client's connection.
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The next request; none at the connection's end.
    pub(super) fn request(&mut self) -> io::Result<Option<Request>> {
        let first = self.line()?;
        let Some(path) = first.split(' ').nth(1) else { return Ok(None) };
        let path = path.to_owned();
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                return Ok(Some(Request { path, fields }));
            };
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        line.truncate(line.trim_end().len());
        Ok(line)
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, status: &str, text: &str) -> io::Result<()> {
        let length = text.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{text}");
        self.reader.get_mut().write_all(answer.as_bytes())
    }

    /// Answers a request for a WebSocket, which sends nothing before it has the answer.
    pub(super) fn switch(mut self, request: &Request) -> io::Result<WebSocket<TcpStream>> {
        let key = request.field("sec-websocket-key").unwrap_or_default();
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        self.reader.get_mut().write_all(answer.as_bytes())?;
        Ok(WebSocket::from_raw_socket(self.reader.into_inner(), Role::Server, None))
    }
}
