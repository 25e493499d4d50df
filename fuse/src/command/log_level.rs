//! The log of running mounts, changed from outside: what `alluxio conf log --target fuse` asks their daemons.

use super::configuration;
use crate::session::{
    control::{self, LogLevel, Question},
    record::StateDir,
};
use common::conf::keys;
use std::path::{Path, PathBuf};

/// Has every running mount of this user (or the one at `point`) log `name` at `level`; an empty level changes nothing.
/// Returns for each mount the directives in force, or why they could not be changed.
///
/// # Errors
/// One line: the state directory cannot be read.
pub fn set(point: Option<&Path>, name: &str, level: &str) -> anyhow::Result<Vec<(PathBuf, Result<String, String>)>> {
    let directory = configuration(None)?.get(&keys::fuse::STATE_DIR);
    let found = match StateDir::existing(&directory)? {
        Some(state) => state.list()?,
        None => Vec::new(),
    };
    let wanted = found.into_iter().filter(|found| found.live && point.is_none_or(|at| at == found.record.mount_point));
    let answers = wanted.map(|found| {
        let question = Question::LogLevel { name: name.to_owned(), level: level.to_owned() };
        let answer = match control::ask::<LogLevel>(&found.socket, question) {
            Ok(answer) => answer.directives,
            Err(error) => Err(format!("the daemon (process {}) does not answer: {error}", found.record.pid)),
        };
        (found.record.mount_point, answer)
    });
    Ok(answers.collect())
}
