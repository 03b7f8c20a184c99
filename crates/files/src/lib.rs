//! Under construction.

pub mod untar;
