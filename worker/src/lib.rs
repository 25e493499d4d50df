//! The worker that serves metadata and cached data of an under storage; here the one embedded in a client's process.
//!
//! - [`EmbeddedWorker`] implements [`common::worker::Worker`] over an under storage and a [`source::PageSource`];
//! - [`server`]: a worker as a process of its own, for many clients and all storages of a cluster;
//! - [`cache`]: what is known of paths, by age; the private modules decide what to ask together and ahead.

pub mod cache;
pub mod clock;
mod embedded;
mod flight;
mod heads;
mod lent;
mod lister;
pub mod options;
mod outage;
mod parents;
pub mod server;
pub mod source;
pub mod stage;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod walk;

pub use clock::Clock;
pub use embedded::{EmbeddedWorker, WorkerStats};
pub use options::WorkerOptions;
pub use source::{PageSource, Space};
pub use stage::{Stage, StageOptions};
