//! Keys of every process.

use crate::conf::key::Decl;
use crate::conf::machine::Environment;
use crate::conf::{Scope, keys};
use std::path::PathBuf;

keys! { Scope::All;
    /// The directory of the installation.
    HOME: PathBuf = Decl::named("alluxio.home").computed(Environment::home_dir, "`$ALLUXIO_HOME`, else `/opt/alluxio`");

    /// The directory of the configuration, where `alluxio-site.properties` is looked for. Setting it here changes what
    /// `${alluxio.conf.dir}` stands for, not where that file is read from.
    CONF_DIR: PathBuf = Decl::named("alluxio.conf.dir")
        .computed(Environment::conf_dir, "`$ALLUXIO_CONF_DIR`, else `$ALLUXIO_HOME/conf`, else `/etc/alluxio`");
}
