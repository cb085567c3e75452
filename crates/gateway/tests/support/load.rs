//! Customers that order at full speed, holds in between, and what must never happen meanwhile.

use super::*;
use hyper::StatusCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use stillpoint_model::manifest::GatewayEvidence;

/// An application that echoes orders, and counts.
pub struct Shop {
    pub application: Application,
    /// Orders that it is at work on.
    active: Arc<AtomicU64>,
    served: Arc<AtomicU64>,
}

impl Shop {
    pub async fn start() -> Self {
        let active = Arc::new(AtomicU64::new(0));
        let served = Arc::new(AtomicU64::new(0));
        let (counting, serving) = (active.clone(), served.clone());
        let application = Application::start(move |request| {
            let (active, served) = (counting.clone(), serving.clone());
            Box::pin(async move {
                active.fetch_add(1, Ordering::SeqCst);
                let body = request.into_body().collect().await.unwrap().to_bytes();
                tokio::task::yield_now().await;
                served.fetch_add(1, Ordering::SeqCst);
                active.fetch_sub(1, Ordering::SeqCst);
                Response::new(full(body))
            })
        })
        .await;
        Self { application, active, served }
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::SeqCst)
    }

    /// Has customers order at `address` while the gateway holds again and again: each order is
    /// answered, and none is at work while it is held. Hands over the evidence of each hold.
    pub async fn hold_under_load(
        &self,
        gateway: &TestGateway,
        address: SocketAddr,
        customers: u64,
        holds: u32,
    ) -> Vec<GatewayEvidence> {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..customers)
            .map(|customer| tokio::spawn(order_until(stop.clone(), address, customer)))
            .collect();
        let mut all = Vec::new();
        for _ in 0..holds {
            // Traffic must have flowed since the hold before.
            let before = self.served();
            gateway.until(|_| self.served() > before + 2 * customers).await;
            let held = drained(gateway.hold_long(Purpose::Backup).await).await;
            let at_drain = self.served();
            assert_eq!(self.active.load(Ordering::SeqCst), 0);
            // All customers come to wait: each has sent its next order.
            gateway.until(|status| status.held == customers).await;
            assert_eq!(self.served(), at_drain, "nothing got through");
            let evidence = blocking(move || held.release()).await.unwrap();
            assert_eq!(evidence.held, customers);
            assert!(evidence.hold_begin <= evidence.drained);
            assert!(evidence.drained <= evidence.hold_end);
            all.push(evidence);
        }
        stop.store(true, Ordering::SeqCst);
        let mut answered = 0;
        for client in clients {
            answered += client.await.unwrap();
        }
        assert_eq!(answered, self.served());
        let status = gateway.until(|status| status.in_flight == 0).await;
        assert_eq!(status.totals.requests, answered);
        let bad = (status.totals.refused, status.totals.bad_gateway, status.totals.ran_out);
        assert_eq!(bad, (0, 0, 0));
        all
    }
}

/// Orders one after the other on one connection, and says how many were answered.
async fn order_until(stop: Arc<AtomicBool>, address: SocketAddr, customer: u64) -> u64 {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut answered = 0;
    while !stop.load(Ordering::SeqCst) {
        let order = Bytes::from(format!("order {customer} {answered}"));
        let request = Request::post("/orders").header("host", "shop.example");
        let request = request.body(Full::new(order.clone())).unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), order);
        answered += 1;
    }
    answered
}
