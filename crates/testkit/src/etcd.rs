//! An etcd of a test's own, run by an account without rights, with users as the documentation gives
//! them.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{free_port, is_root};

const NOBODY: u32 = 65534;
/// Another program may take a free port before the server has it.
const TRIES: u32 = 5;

/// A running server of one member. Users: `backup` may read everything, `restorer` write it too,
/// `nobody` nothing; their password is `secret`.
#[derive(Debug)]
pub struct Etcd {
    child: Child,
    dir: TempDir,
    port: u16,
    settings: Vec<String>,
    /// None where there are no users.
    root: Option<String>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A key as it is: value, lease and the revision that wrote it.
type Keys = BTreeMap<Vec<u8>, (Vec<u8>, i64, i64)>;

impl Etcd {
    /// With the usual settings.
    ///
    /// # Panics
    /// When etcd is not installed: tests need it (Debian: `etcd-server`).
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more settings, as on its command line.
    pub fn with(settings: &[&str]) -> Self {
        let mut server = Self::bare(settings);
        for (user, right) in [("backup", "READ"), ("restorer", "READWRITE"), ("nobody", "")] {
            server.ok("auth/user/add", &json!({ "name": user, "password": "secret" }));
            server.ok("auth/role/add", &json!({ "name": user }));
            server.ok("auth/user/grant", &json!({ "user": user, "role": user }));
            if !right.is_empty() {
                let all = json!({ "permType": right, "key": "AA==", "range_end": "AA==" });
                server.ok("auth/role/grant", &json!({ "name": user, "perm": all }));
            }
        }
        server.ok("auth/user/add", &json!({ "name": "root", "password": "root" }));
        server.ok("auth/role/add", &json!({ "name": "root" }));
        server.ok("auth/user/grant", &json!({ "user": "root", "role": "root" }));
        server.ok("auth/enable", &json!({}));
        server.log_in();
        server
    }

    /// A server without users.
    pub fn bare(settings: &[&str]) -> Self {
        let settings: Vec<String> = settings.iter().map(|word| (*word).to_owned()).collect();
        for _ in 0..TRIES {
            let dir = tempfile::Builder::new().prefix("etcd").tempdir().unwrap();
            if is_root() {
                std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let port = free_port();
            let child = spawn(&dir, port, &settings);
            let mut server = Self { child, dir, port, settings: settings.clone(), root: None };
            if server.is_ready() {
                return server;
            }
            eprintln!("the server did not start: {}", server.log());
        }
        panic!("the server does not start");
    }

    /// Waits until it serves; false where it has ended.
    fn is_ready(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            let health = ureq::get(format!("{}/health", self.url(""))).call();
            let healthy = health.is_ok_and(|mut said| {
                said.body_mut().read_to_string().is_ok_and(|text| text.contains("true"))
            });
            // What answers may be another test's server, which had the port first.
            if healthy && self.log().contains("ready to serve client requests") {
                return true;
            }
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            assert!(Instant::now() < end, "the server starts: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn log_in(&mut self) {
        let login = json!({ "name": "root", "password": "root" });
        let answer = self.ok("auth/authenticate", &login);
        self.root = Some(answer["token"].as_str().unwrap().to_owned());
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A crash, and a start from what is on disk.
    pub fn crash_and_start(&mut self) {
        self.kill();
        self.child = spawn(&self.dir, self.port, &self.settings);
        assert!(self.is_ready(), "{}", self.log());
        if self.root.take().is_some() {
            self.log_in();
        }
    }

    /// Where it is, for `user` if one is named.
    pub fn url(&self, user: &str) -> String {
        let at = if user.is_empty() { "" } else { "@" };
        format!("http://{user}{at}127.0.0.1:{}", self.port)
    }

    /// A call as root, which must succeed.
    pub fn ok(&self, path: &str, body: &Value) -> Value {
        let mut request = ureq::post(format!("{}/v3/{path}", self.url("")));
        if let Some(token) = &self.root {
            request = request.header("Authorization", token);
        }
        let mut answer = request.send_json(body).unwrap_or_else(|e| panic!("{path} {body}: {e}"));
        answer.body_mut().with_config().limit(u64::MAX).read_json().unwrap()
    }

    /// Puts a key.
    pub fn put(&self, key: &str, value: &[u8]) {
        self.put_leased(key, value, 0);
    }

    /// Puts a key that ends with a lease.
    pub fn put_leased(&self, key: &str, value: &[u8], lease: i64) {
        let lease = lease.to_string();
        let body = json!({ "key": b64(key), "value": b64(value), "lease": lease });
        self.ok("kv/put", &body);
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) {
        self.ok("kv/deleterange", &json!({ "key": b64(key) }));
    }

    /// `count` keys `PREFIX000000` and so on, with that value.
    pub fn put_many(&self, prefix: &str, count: usize, value: &str) {
        let numbers: Vec<usize> = (0..count).collect();
        for chunk in numbers.chunks(100) {
            let puts: Vec<Value> = chunk
                .iter()
                .map(|n| {
                    let key = format!("{prefix}{n:06}");
                    json!({ "request_put": { "key": b64(key), "value": b64(value) } })
                })
                .collect();
            self.ok("kv/txn", &json!({ "success": puts }));
        }
    }

    /// Grants a lease of so many seconds.
    pub fn lease(&self, id: i64, ttl: i64) {
        self.ok("lease/grant", &json!({ "ID": id.to_string(), "TTL": ttl.to_string() }));
    }

    /// Ends a lease, and its keys.
    pub fn revoke(&self, id: i64) {
        self.ok("kv/lease/revoke", &json!({ "ID": id.to_string() }));
    }

    /// The seconds that a lease was granted for; 0 where there is none.
    pub fn granted(&self, id: i64) -> i64 {
        let answer = self.ok("lease/timetolive", &json!({ "ID": id.to_string() }));
        number(&answer["grantedTTL"])
    }

    /// Everything that there is.
    pub fn keys(&self) -> Keys {
        let answer = self.ok("kv/range", &json!({ "key": "AA==", "range_end": "AA==" }));
        let kvs = answer["kvs"].as_array().cloned().unwrap_or_default();
        let bytes = |value: &Value| BASE64.decode(value.as_str().unwrap_or_default()).unwrap();
        kvs.iter()
            .map(|kv| {
                let value =
                    (bytes(&kv["value"]), number(&kv["lease"]), number(&kv["mod_revision"]));
                (bytes(&kv["key"]), value)
            })
            .collect()
    }

    /// The same without revisions.
    pub fn content(&self) -> BTreeMap<Vec<u8>, (Vec<u8>, i64)> {
        self.keys().into_iter().map(|(key, (value, lease, _))| (key, (value, lease))).collect()
    }

    /// Runs the stock client as root.
    pub fn etcdctl(&self, command: &str) {
        // Words as a shell would take them: the only quotes are an empty text.
        let words = command.split(' ').map(|word| if word == "\"\"" { "" } else { word });
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url(""), "--user", "root:root"])
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    BASE64.encode(bytes)
}

fn number(value: &Value) -> i64 {
    value.as_str().map_or(0, |text| text.parse().unwrap())
}

fn spawn(dir: &TempDir, port: u16, settings: &[String]) -> Child {
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let url = format!("http://127.0.0.1:{port}");
    let mut command = Command::new("etcd");
    command
        .arg("--data-dir")
        .arg(dir.path().join("data"))
        .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
        // A cluster of one is never called by another member.
        .args(["--listen-peer-urls", "http://127.0.0.1:0"])
        .args(["--initial-advertise-peer-urls", "http://127.0.0.1:1"])
        .args(["--initial-cluster", "default=http://127.0.0.1:1", "--bcrypt-cost", "4"])
        .args(settings)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.spawn().expect("etcd starts (Debian: etcd-server)")
}
