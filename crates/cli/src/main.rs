#![doc = "The `stillpoint` command."]
#![allow(dead_code, unused_imports, reason = "the commands that use these rooms are being wired")]

mod demo;

fn main() {}
