//! What object stores have in common.

pub mod names;
pub mod writes;
