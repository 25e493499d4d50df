//! The read path below FUSE (client, worker, page store) over a storage that fails in every way, against a model.
//!
//! The model is small: the bytes of a file follow from its path and the number of its version. Whatever the storage does
//! and however little memory there is, a read gives the bytes of the one version that its handle stands for, or an error.

mod faulty;
mod model;
