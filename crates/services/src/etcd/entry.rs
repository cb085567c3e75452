//! A key with its value and lease: as a line of a capture, and as it waits aside.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// All of this driver's own keys begin so; backups and restores leave them out.
pub(super) const OURS: &[u8] = b"\0stillpoint/";
/// The first key after all of them.
pub(super) const AFTER_OURS: &[u8] = b"\0stillpoint0";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// 0 for none.
    pub(super) lease: i64,
}

/// A line of `keys.jsonl`: what the gateway's `kv/put` takes.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
}

impl Entry {
    /// From what a range answers; `None` where it is not of that shape.
    pub(super) fn from_answer(kv: &Value) -> Option<Self> {
        Some(Self {
            key: decode(kv["key"].as_str()?)?,
            value: decode(kv["value"].as_str().unwrap_or_default())?,
            lease: kv.get("lease").map_or(Some(0), super::client::number)?,
        })
    }

    pub(super) fn to_line(&self) -> String {
        let line = Line {
            key: encode(&self.key),
            value: encode(&self.value),
            lease: (self.lease != 0).then(|| self.lease.to_string()),
        };
        serde_json::to_string(&line).expect("strings become JSON") + "\n"
    }

    pub(super) fn from_line(line: &str) -> Result<Self, String> {
        let line: Line = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let bytes = |text: &str| decode(text).ok_or("it is not base64");
        Ok(Self {
            key: bytes(&line.key)?,
            value: bytes(&line.value)?,
            lease: line.lease.map_or(Ok(0), |lease| lease.parse()).map_err(|_| "no such lease")?,
        })
    }

    /// As it waits under `prefix`: not of its lease, which might end meanwhile and take it along;
    /// that is written before the value instead.
    pub(super) fn aside(&self, prefix: &[u8]) -> Self {
        let mut value = self.lease.to_be_bytes().to_vec();
        value.extend(&self.value);
        Self { key: [prefix, &self.key].concat(), value, lease: 0 }
    }

    /// The reverse; `None` for what [`Entry::aside`] has not made.
    pub(super) fn back(&self, prefix: &[u8]) -> Option<Self> {
        let (lease, value) = self.value.split_first_chunk()?;
        Some(Self {
            key: self.key.strip_prefix(prefix)?.to_vec(),
            value: value.to_vec(),
            lease: i64::from_be_bytes(*lease),
        })
    }

    /// The operation of a transaction that puts it.
    pub(super) fn put(&self) -> Value {
        let mut put = json!({ "key": encode(&self.key), "value": encode(&self.value) });
        if self.lease != 0 {
            put["lease"] = self.lease.to_string().into();
        }
        json!({ "request_put": put })
    }

    pub(super) fn size(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

/// The operation that deletes one key.
pub(super) fn delete(key: &[u8]) -> Value {
    json!({ "request_delete_range": { "key": encode(key) } })
}

pub(super) fn encode(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// The end of the range of all keys with `prefix`, which does not end in 255.
pub(super) fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_what_waits_aside_keep_everything() {
        for lease in [0, 77, i64::MAX] {
            for value in [&b""[..], b"\0\xff\n"] {
                let entry = Entry { key: b"\xffk".to_vec(), value: value.to_vec(), lease };
                assert_eq!(Entry::from_line(entry.to_line().trim_end()).unwrap(), entry);
                let aside = entry.aside(b"p/");
                assert_eq!((aside.key.as_slice(), aside.lease), (&b"p/\xffk"[..], 0));
                assert_eq!(aside.back(b"p/").unwrap(), entry);
            }
        }
        assert_eq!(after(OURS), AFTER_OURS);
    }
}
