//! The repository against the stock client, and against bad luck.

#![allow(clippy::disallowed_methods, reason = "tests make files that need not last")]

mod support;

mod backup;
mod concurrency;
mod damage;
mod failing_store;
mod killed;
mod locations;
mod locations_in_adversity;
mod locks;
mod restore;
mod shaky_store;
mod stock_reads_ours;
mod we_read_stock;
