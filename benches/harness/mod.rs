//! What the benches share: the servers, the clients, the things that are served, and the report.

#![allow(dead_code, reason = "each bench uses its part")]

pub mod bare;
pub mod fixture;
pub mod load;
pub mod process;
pub mod report;
pub mod server;
pub mod site;
pub mod trees;
