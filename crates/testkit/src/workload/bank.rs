//! The application: it writes what it is asked to into the services, one after the other, and
//! answers when all is written. Nothing goes on after the answer.
//!
//! | request | does |
//! | --- | --- |
//! | `/transfer/FROM/TO/ACCOUNT/AMOUNT` | debits in service `FROM`, then credits in `TO` |
//! | `/through/FROM/TO/ACCOUNT/AMOUNT` | debits, then asks its own public address for the credit |
//! | `/credit/TO/ACCOUNT/AMOUNT` | credits; the second half of the one above |
//! | `/order` | writes an order everywhere, answers its number |
//! | `/socket` | a WebSocket, each of whose messages `FROM/TO/ACCOUNT/AMOUNT` is a transfer |
//! | `/orders` | answers how many orders have been answered; writes nothing |

use super::http::{Connection, IN_FLIGHT, Request};
use super::{Addresses, BoxError, KEPT, books, books::Book, receipts};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tungstenite::Message;

type Desk = [Box<dyn Book>; super::SERVICES];

struct Bank {
    at: Addresses,
    /// Connections that nobody uses at the moment.
    desks: Mutex<Vec<Desk>>,
    /// The last order's number.
    last: AtomicU64,
    answered: AtomicU64,
}

/// Serves for as long as the process lives. `ready` is told the address.
pub(super) fn serve(at: Addresses, ready: impl FnOnce(&str)) -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let bank = Arc::new(Bank {
        at,
        desks: Mutex::default(),
        last: AtomicU64::new(0),
        answered: AtomicU64::new(0),
    });
    ready(&listener.local_addr()?.to_string());
    for stream in listener.incoming() {
        let (stream, bank) = (stream?, Arc::clone(&bank));
        std::thread::Builder::new().spawn(move || {
            // A connection that breaks was its client's or the gateway's; those tell of it.
            if let Err(error) = bank.connection(stream) {
                eprintln!("bank: a connection broke: {error}");
            }
        })?;
    }
    Ok(())
}

impl Bank {
    fn connection(&self, stream: TcpStream) -> Result<(), BoxError> {
        let mut connection = Connection::new(stream)?;
        while let Some(request) = connection.request()? {
            if request.path == "/socket" {
                return self.socket(connection, &request);
            }
            match self.act(&request) {
                Ok(text) => connection.answer("200 OK", &text)?,
                Err(error) => {
                    connection.answer("500 Internal Server Error", &error.to_string())?;
                }
            }
        }
        Ok(())
    }

    fn socket(&self, connection: Connection, request: &Request) -> Result<(), BoxError> {
        let mut socket = connection.switch(request)?;
        loop {
            match socket.read() {
                Ok(Message::Text(order)) => {
                    let words: Vec<&str> = order.split('/').collect();
                    let text = match self.transfer(&words) {
                        Ok(()) => "done".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    socket.send(Message::text(text))?;
                }
                Err(tungstenite::Error::ConnectionClosed) => return Ok(()),
                Err(error) => return Err(error.into()),
                Ok(_) => {}
            }
        }
    }

    fn act(&self, request: &Request) -> Result<String, BoxError> {
        let words: Vec<&str> = request.path.split('/').skip(1).collect();
        match words.as_slice() {
            ["transfer", transfer @ ..] => self.transfer(transfer).map(|()| "done".to_owned()),
            ["through", from, to, account, amount] => {
                self.add(from, account, -amount.parse::<i64>()?)?;
                credit_by_self(request, &format!("{to}/{account}/{amount}"))?;
                Ok("done".to_owned())
            }
            ["credit", to, account, amount] => {
                self.add(to, account, amount.parse()?).map(|()| "done".to_owned())
            }
            ["order"] => self.order().map(|number| number.to_string()),
            ["orders"] => Ok(self.answered.load(Ordering::SeqCst).to_string()),
            _ => Err(format!("there is no {}", request.path).into()),
        }
    }

    fn transfer(&self, words: &[&str]) -> Result<(), BoxError> {
        let [from, to, account, amount] = words else { return Err("no such transfer".into()) };
        let amount: i64 = amount.parse()?;
        self.add(from, account, -amount)?;
        self.add(to, account, amount)
    }

    fn add(&self, service: &str, account: &str, amount: i64) -> Result<(), BoxError> {
        let (service, account): (usize, u32) = (service.parse()?, account.parse()?);
        self.at_a_desk(|desk| desk[service].add(account, amount))
    }

    fn order(&self) -> Result<u64, BoxError> {
        let number = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        let hash = receipts::hash_of(number);
        let old = number.checked_sub(KEPT).filter(|old| *old > 0);
        self.at_a_desk(|desk| {
            let [db, ledger, cache, local] = desk;
            db.order(number, &hash, old)?;
            ledger.order(number, &hash, old)?;
            receipts::write(&self.at.receipts, number)?;
            if let Some(old) = old {
                receipts::remove(&self.at.receipts, old)?;
            }
            cache.order(number, &hash, old)?;
            local.order(number, &hash, old)
        })?;
        self.answered.fetch_add(1, Ordering::SeqCst);
        Ok(number)
    }

    /// Acts on connections that nobody else uses meanwhile.
    fn at_a_desk<T>(
        &self,
        act: impl FnOnce(&mut Desk) -> Result<T, BoxError>,
    ) -> Result<T, BoxError> {
        let free = self.desks.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut desk = free.map_or_else(|| books::connect(&self.at), Ok)?;
        let done = act(&mut desk)?;
        self.desks.lock().unwrap_or_else(PoisonError::into_inner).push(desk);
        Ok(done)
    }
}

/// Asks for a credit where the client's request came in, on account of that request.
fn credit_by_self(request: &Request, credit: &str) -> Result<(), BoxError> {
    let host = request.field("host").ok_or("the request names no host")?;
    let mut call = ureq::post(format!("http://{host}/credit/{credit}"));
    if let Some(token) = request.field(IN_FLIGHT) {
        call = call.header(IN_FLIGHT, token);
    }
    call.send_empty()?.body_mut().read_to_string()?;
    Ok(())
}
