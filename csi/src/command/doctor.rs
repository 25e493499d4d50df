//! `alluxio-csi doctor`: what is mounted, served and recorded on this node, and what does not fit together.

use super::DoctorArgs;
use std::process::ExitCode;

/// Prints the findings; exit code 1 when something is wrong.
pub(super) fn doctor(_arguments: &DoctorArgs) -> Result<ExitCode, String> {
    Err("not part of this version".into())
}
