//! Rules that span several keys.

use super::{Conf, ConfError, ConfValue, Key, keys};

/// Checks that the values of a configuration go together.
///
/// # Errors
/// The keys that do not, where they were set, and the fix.
pub(super) fn check(conf: &Conf) -> Result<(), ConfError> {
    let named = |key: &str| match conf.show(key) {
        Some((value, source)) => format!("{key}={} ({source})", value.unwrap_or_default()),
        None => key.to_owned(),
    };
    let (high, low) = (&keys::user::CLIENT_CACHE_WATERMARK_HIGH, &keys::user::CLIENT_CACHE_WATERMARK_LOW);
    if conf.get(low) >= conf.get(high) {
        return Err(ConfError::Conflict(format!(
            "{} must be below {}; lower it",
            named(low.name()),
            named(high.name())
        )));
    }
    let (dirs, sizes) = (&keys::user::CLIENT_CACHE_DIRS, &keys::user::CLIENT_CACHE_SIZES);
    let (dir_count, size_count) = (conf.get(dirs).len(), conf.get(sizes).len());
    if dir_count == 0 {
        return Err(ConfError::Conflict(format!(
            "{} names no directory; name one, or set {}=0",
            named(dirs.name()),
            keys::user::CLIENT_CACHE_SIZE.name()
        )));
    }
    if size_count != 0 && size_count != dir_count {
        return Err(ConfError::Conflict(format!(
            "{} has {size_count} sizes for the {dir_count} directories of {}; give one size for each",
            named(sizes.name()),
            named(dirs.name())
        )));
    }
    pair(conf, &keys::underfs::S3_ACCESS_KEY_ID, &keys::underfs::S3_SECRET_KEY)?;
    pair(conf, &keys::underfs::OSS_ACCESS_KEY_ID, &keys::underfs::OSS_ACCESS_KEY_SECRET)
}

/// Credentials come in twos.
fn pair<T: ConfValue + PartialEq>(conf: &Conf, one: &Key<Option<T>>, other: &Key<Option<T>>) -> Result<(), ConfError> {
    for (there, missing) in [(one, other), (other, one)] {
        if conf.get(there).is_some() && conf.get(missing).is_none() {
            let source = conf.source_of(there);
            return Err(ConfError::Conflict(format!(
                "{} is set ({source}) but {} is not; set both or neither",
                there.name(),
                missing.name()
            )));
        }
    }
    Ok(())
}
