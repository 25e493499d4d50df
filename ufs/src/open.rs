//! From a URI to the under storage that it names.

use crate::{options::UfsOptions, posix::Posix, s3::S3, storage::UnderStorage};
use common::{Error, ErrorKind, Result, UfsUri};
use std::sync::Arc;

/// The under storage at `uri`. Nothing is asked of a network yet: [`UnderStorage::probe`] does that.
/// Fails with one line that says what is wrong with the URI or the options, and how to mend it.
pub fn open(uri: &UfsUri, options: &UfsOptions) -> Result<Arc<dyn UnderStorage>> {
    match uri.scheme() {
        "file" => Ok(Arc::new(Posix::open(uri, options)?)),
        "s3" | "s3a" => Ok(Arc::new(S3::open(uri, options)?)),
        #[cfg(feature = "opendal")]
        scheme if crate::services::SCHEMES.contains(&scheme) => {
            Ok(Arc::new(crate::services::Service::open(uri, options)?))
        }
        scheme => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{uri}: unknown scheme {scheme}; these work: {}", schemes().join(", ")),
        )),
    }
}

/// The schemes that this build knows.
pub fn schemes() -> Vec<&'static str> {
    #[cfg_attr(not(feature = "opendal"), allow(unused_mut))]
    let mut schemes = vec!["file", "s3", "s3a"];
    #[cfg(feature = "opendal")]
    schemes.extend(crate::services::SCHEMES);
    schemes
}
