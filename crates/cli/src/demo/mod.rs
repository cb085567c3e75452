//! `stillpoint demo`: a real environment under load, backed up, destroyed, restored, compared.

pub(crate) mod compare;
pub(crate) mod ledger;
pub(crate) mod load;
pub(crate) mod shop;
