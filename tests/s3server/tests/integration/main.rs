//! The server over real sockets.

mod api;
mod credentials;
mod faults;
mod raw;
mod rclone;
mod speed;
mod tls;
