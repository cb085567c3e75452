//! The format's encodings, each with the bytes that stock clients write: they compare hashes.

pub(crate) mod json;
pub(crate) mod name;
pub(crate) mod node;
pub(crate) mod pack;
pub(crate) mod snapshot;
pub(crate) mod time;
pub(crate) mod tree;
pub(crate) mod unpacked;
