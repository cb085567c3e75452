//! Key files: the repository's key, wrapped by one derived from a password with scrypt.

use crate::crypto::{self, Key};
use crate::error::{RepositoryError, file_name};
use crate::format::time;
use crate::host;
use crate::id::FileId;
use crate::store::{FileKind, Store};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// Stock clients try no more keys either.
const MOST_KEYS: usize = 20;
/// Memory that a key file may make us take: 128 N r bytes.
const MOST_MEMORY: u64 = 1 << 30;
/// How long deriving should take where the repository is created.
const AIM: Duration = Duration::from_millis(300);

#[derive(Serialize, Deserialize)]
struct KeyFile {
    created: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    hostname: String,
    kdf: String,
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
    salt: String,
    data: String,
}

#[derive(Serialize, Deserialize)]
struct MasterKey {
    mac: MacKey,
    encrypt: Zeroizing<String>,
}

#[derive(Serialize, Deserialize)]
struct MacKey {
    k: Zeroizing<String>,
    r: Zeroizing<String>,
}

/// The bytes of a new key file that wraps `key`.
pub(crate) fn wrap(key: &Key, password: &str) -> Result<Vec<u8>, RepositoryError> {
    let master = MasterKey {
        mac: MacKey {
            k: BASE64_STANDARD.encode(key.mac_k).into(),
            r: BASE64_STANDARD.encode(key.mac_r).into(),
        },
        encrypt: BASE64_STANDARD.encode(key.encrypt).into(),
    };
    let plain = Zeroizing::new(serde_json::to_vec(&master).expect("plain strings become JSON"));
    let salt: [u8; 64] = crypto::random();
    let (n, r) = (1 << 15, 8);
    let begun = Instant::now();
    let _ = derive(password, &salt, n, r, 1)?;
    let once = begun.elapsed().max(Duration::from_millis(1));
    let p = (AIM.as_millis() / once.as_millis()).clamp(1, 16) as u32;
    let user_key = derive(password, &salt, n, r, p)?;
    let file = KeyFile {
        created: time::encode(Timestamp::now()),
        username: host::user(),
        hostname: host::name(),
        kdf: "scrypt".to_owned(),
        n,
        r,
        p,
        salt: BASE64_STANDARD.encode(salt),
        data: BASE64_STANDARD.encode(user_key.encrypt(&plain)),
    };
    Ok(serde_json::to_vec(&file).expect("plain strings become JSON"))
}

/// The repository's key, from whichever key file the password opens.
pub(crate) fn open(store: &dyn Store, password: &str) -> Result<Key, RepositoryError> {
    let keys = store.list(FileKind::Key).map_err(RepositoryError::store("list the keys"))?;
    let mut damage = None;
    for (id, _) in keys.iter().take(MOST_KEYS) {
        let name = file_name(FileKind::Key, id);
        let bytes = store
            .read(FileKind::Key, id)
            .map_err(RepositoryError::store(format!("read {name}")))?;
        match unwrap(&bytes, &name, id, password) {
            Ok(Some(key)) => return Ok(key),
            Ok(None) => {}
            // Another key may still open; if none does, the damage is the better explanation.
            Err(error) => damage = Some(error),
        }
    }
    Err(damage.unwrap_or(RepositoryError::WrongPassword { keys: keys.len().min(MOST_KEYS) }))
}

fn unwrap(
    bytes: &[u8],
    name: &str,
    id: &FileId,
    password: &str,
) -> Result<Option<Key>, RepositoryError> {
    let damaged = |why: &str| RepositoryError::damaged(name, why);
    if FileId::of(bytes) != *id {
        return Err(damaged("its content does not match its name"));
    }
    let file: KeyFile =
        serde_json::from_slice(bytes).map_err(|error| RepositoryError::damaged(name, error))?;
    if file.kdf != "scrypt" {
        return Err(damaged("it is for an unknown way to derive keys"));
    }
    let salt = BASE64_STANDARD.decode(&file.salt).map_err(|_| damaged("its salt is not base64"))?;
    let data = BASE64_STANDARD.decode(&file.data).map_err(|_| damaged("its data is not base64"))?;
    let user_key = derive(password, &salt, file.n, file.r, file.p)?;
    let Ok(plain) = user_key.decrypt(&data).map(Zeroizing::new) else { return Ok(None) };
    let master: MasterKey =
        serde_json::from_slice(&plain).map_err(|error| RepositoryError::damaged(name, error))?;
    let part = |text: &str, into: &mut [u8]| {
        let bytes = Zeroizing::new(BASE64_STANDARD.decode(text).unwrap_or_default());
        if bytes.len() != into.len() {
            return Err(damaged("the key in it has a wrong length"));
        }
        into.copy_from_slice(&bytes);
        Ok(())
    };
    let mut key = Key { encrypt: [0; 32], mac_k: [0; 16], mac_r: [0; 16] };
    part(&master.encrypt, &mut key.encrypt)?;
    part(&master.mac.k, &mut key.mac_k)?;
    part(&master.mac.r, &mut key.mac_r)?;
    Ok(Some(key))
}

fn derive(password: &str, salt: &[u8], n: u64, r: u32, p: u32) -> Result<Key, RepositoryError> {
    let memory = n.saturating_mul(u64::from(r)).saturating_mul(128);
    if !n.is_power_of_two() || n < 2 || memory > MOST_MEMORY || r > 64 || p > 64 {
        return Err(RepositoryError::Unsupported(format!(
            "a key asks for scrypt parameters out of bounds (N {n}, r {r}, p {p})"
        )));
    }
    let params = scrypt::Params::new(n.ilog2() as u8, r, p)
        .map_err(|error| RepositoryError::Unsupported(error.to_string()))?;
    let mut derived = Zeroizing::new([0; 64]);
    scrypt::scrypt(password.as_bytes(), salt, &params, derived.as_mut_slice())
        .map_err(|error| RepositoryError::Unsupported(error.to_string()))?;
    Ok(Key::from_derived(&derived))
}
