#![doc = "The `stillpoint` command."] 
fn main() {}
