//! The repository against the stock client, and against bad luck.

mod support;

mod stock_reads_ours;
