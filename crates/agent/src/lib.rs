//! A host's process: it holds the passwords and keys of this host's parts, and runs backups and
//! restores on a server's order, each in a process of its own.

pub mod protocol;
