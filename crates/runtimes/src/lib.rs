//! (purpose to be written)
