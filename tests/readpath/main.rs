//! readpath
