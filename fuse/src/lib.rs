//! The FUSE daemon: a mounted file system over whatever serves the [`common::worker::Worker`] interface.
//!
//! From the inside out: [`fs`] has the POSIX semantics without any FUSE type, [`passthrough`] decides which open files the
//! kernel reads without us, [`adapter`] speaks fuser, [`assemble`] builds the whole from a plan, [`session`] mounts, serves
//! and unmounts it, and [`command`] is the command line.

pub mod adapter;
pub mod assemble;
pub mod command;
pub mod fs;
pub mod passthrough;
pub mod session;
pub mod web;
