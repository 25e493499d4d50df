//! `alluxio-fuse mount`: reads and checks everything, goes into the background, and runs the mount.

use super::{Failure, MountArgs, complain, configuration};
use crate::{
    adapter::{Adapter, notify},
    assemble::{CLUSTER_SCHEME, MountPlan, filesystem},
    session::{
        SessionError,
        control::Uploads,
        daemonize::{self, Outcome, Reporter, Side},
        kernel::MountRequest,
        mounts, point, process,
        record::StateDir,
        run::{self, Served, Setup},
        signals,
    },
    web,
};
use common::{
    UfsUri,
    conf::{Conf, MountOptions, Source, keys},
    logging::{self, LogOptions},
    redact,
};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

/// How much longer the parent waits than its child, which has the same limit and cleans up after itself.
const PARENT_GRACE: Duration = Duration::from_millis(2500);

/// A mount that is wanted, with everything checked that can be without the storage.
struct Wanted {
    setup: Setup,
    plan: MountPlan,
    log: LogOptions,
    warnings: Vec<String>,
    notes: Vec<String>,
}

/// Mounts; returns the exit code. `helper`: called by mount(8), where `-f` means to pretend only.
pub(super) fn mount(arguments: MountArgs, helper: bool) -> Result<i32, Failure> {
    let pretend = helper && arguments.foreground;
    let wanted = prepare(&arguments, arguments.foreground && !helper)?;
    if pretend {
        return Ok(0);
    }
    if arguments.foreground {
        return serve(wanted, None);
    }
    let (point, limit) = (wanted.setup.request.point.clone(), wanted.setup.limit);
    let missing = first_missing(&point);
    let before = mounts::list()?;
    match daemonize::split()? {
        Side::Child(reporter) => serve(wanted, Some(reporter)),
        Side::Parent(waiting) => match waiting.wait(limit + PARENT_GRACE) {
            Outcome::Ready => Ok(0),
            Outcome::Failed(reason) => Err(Failure::Line(reason)),
            Outcome::TimedOut => {
                clear_after(&point, &missing, &before);
                Err(Failure::Line(format!(
                    "{}: the mount did not come up within {} s and was given up",
                    point.display(),
                    limit.as_secs()
                )))
            }
        },
    }
}

/// The directories on the way to `path` that do not exist, the topmost first.
fn first_missing(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> =
        path.ancestors().take_while(|path| path.symlink_metadata().is_err()).map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// Takes away what a daemon left that had to be killed during its start.
fn clear_after(point: &Path, missing: &[PathBuf], before: &[mounts::Mount]) {
    if let Ok(Some(mount)) = mounts::at(point)
        && mount.is_ours()
        && !before.contains(&mount)
        && let Err(error) = crate::session::kernel::unmount(point, mount.device, true)
    {
        complain(&error.to_string());
    }
    point::remove(missing);
}

/// Reads and checks the command line and the configuration.
fn prepare(arguments: &MountArgs, foreground: bool) -> Result<Wanted, Failure> {
    let options = MountOptions::parse(arguments.options.iter().map(String::as_str))?;
    let conf = configuration(Some(&options))?;
    let (uri, source_dir, point) = names(&arguments.names, &conf)?;
    let source = mounts::source_label(&redact::uri(&uri.to_string()));
    let state_dir = conf.get(&keys::fuse::STATE_DIR);
    let log_file = match conf.get(&keys::fuse::LOG_FILE) {
        Some(file) => Some(std::path::absolute(&file).map_err(|error| SessionError::system(file.display(), error))?),
        None if foreground => None,
        None => Some(state_dir.join("log").join(log_name(&point))),
    };
    let mut ours = vec![("state directory", point::resolve(&state_dir)?)];
    // The default one lies in the state directory.
    if let Some(file) = log_file.as_ref().filter(|_| conf.is_set(&keys::fuse::LOG_FILE)) {
        ours.push(("log file", point::resolve(file)?));
    }
    for directory in conf.get(&keys::user::CLIENT_CACHE_DIRS) {
        ours.push(("cache directory", point::resolve(&directory)?));
    }
    point::check(&point, &point::Neighbours { source: source_dir, ours })?;
    // The default log lies in it, so it comes first, with the rights that it must have.
    StateDir::create(&state_dir)?;
    let request = MountRequest {
        point,
        source,
        allow_other: options.allow_other || options.allow_root,
        read_only: options.read_only,
        flags: options.kernel_flags.clone(),
        max_read: conf.get(&keys::fuse::MAX_REQUEST_SIZE).bytes(),
    };
    let setup = Setup {
        request,
        root_and_owner: options.allow_root,
        state_dir,
        log_file: log_file.clone(),
        readahead_kib: conf.get(&keys::fuse::READAHEAD_KB),
        limit: conf.get(&keys::fuse::MOUNT_TIMEOUT),
    };
    let log = LogOptions {
        filter: conf.get(&keys::fuse::LOG_LEVEL).0,
        file: log_file,
        json: conf.get(&keys::fuse::LOG_FORMAT) == keys::fuse::LogFormat::Json,
    };
    let warnings = conf.warnings().to_vec();
    let notes = conf.notes().iter().chain(&options.notes).cloned().collect();
    let plan = MountPlan { uri, conf, ufs_options: Vec::new(), read_only: options.read_only };
    Ok(Wanted { setup, plan, log, warnings, notes })
}

/// What to mount, its directory if it is one of this host, and where.
fn names(names: &[OsString], conf: &Conf) -> Result<(UfsUri, Option<PathBuf>, PathBuf), Failure> {
    let (source, point) = match names {
        [source, point] => (source, point),
        [point] if !point.to_string_lossy().contains("://") && !conf.get(&keys::cluster::ETCD_ENDPOINTS).is_empty() => {
            let point = point.to_str().filter(|point| !point.is_empty()).ok_or_else(|| {
                Failure::Line("the mount point is empty or not UTF-8: alluxio-fuse mount <mount point>".into())
            })?;
            return Ok((cluster_uri(conf)?, None, point::resolve(Path::new(point))?));
        }
        [source] if source.to_string_lossy().contains("://") => {
            return Err(Failure::Line(format!(
                "no mount point given: alluxio-fuse mount {} <mount point>",
                redact::uri(&source.to_string_lossy())
            )));
        }
        _ => {
            let point = match (names, conf.source_of(&keys::fuse::MOUNT_POINT)) {
                ([point], _) => point.to_string_lossy().into_owned(),
                (_, Source::Default) => "<mount point>".into(),
                _ => conf.get(&keys::fuse::MOUNT_POINT).display().to_string(),
            };
            return Err(Failure::Line(format!(
                "no under storage given: alluxio-fuse mount <uri or path> {point}, for example s3://bucket/prefix; to mount \
                 a cluster set alluxio.etcd.endpoints"
            )));
        }
    };
    let text = |name: &OsString| {
        name.to_str().map(str::to_owned).ok_or_else(|| {
            Failure::Line(format!("{} is not UTF-8; rename it or reach it by a link", name.to_string_lossy()))
        })
    };
    let (source, point) = (text(source)?, text(point)?);
    if source.is_empty() || point.is_empty() {
        return Err(Failure::Line("an empty name was given: alluxio-fuse mount <uri or path> <mount point>".into()));
    }
    let source = match source.contains("://") {
        true => source,
        // A daemon has another working directory.
        false => {
            let path = std::path::absolute(&source).map_err(|error| SessionError::system(&source, error))?;
            point::resolve(&path)?.to_string_lossy().into_owned()
        }
    };
    let uri = UfsUri::parse(&source).map_err(|error| Failure::Line(redact::text(error.message())))?;
    let directory = match uri.scheme() {
        "file" => Some(point::resolve(&Path::new("/").join(uri.path()))?),
        _ => None,
    };
    Ok((uri, directory, point::resolve(Path::new(&point))?))
}

/// The namespace of the cluster that the configuration names, from the path in it that is to be mounted.
fn cluster_uri(conf: &Conf) -> Result<UfsUri, Failure> {
    let (cluster, path) = (conf.get(&keys::cluster::CLUSTER_NAME), conf.get(&keys::fuse::MOUNT_ALLUXIO_PATH));
    UfsUri::parse(&format!("{CLUSTER_SCHEME}://{cluster}/{path}"))
        .map_err(|error| Failure::Line(format!("alluxio.cluster.name={cluster}: {error}")))
}

fn log_name(point: &Path) -> String {
    let name = point.to_string_lossy().trim_matches('/').replace(['/', '\n'], "-");
    // The end of a path tells more than its beginning; a file name has 255 bytes at most.
    let start = name.char_indices().map(|(at, _)| at).find(|at| name.len() - at <= 200).unwrap_or(0);
    format!("{}.log", &name[start..])
}

/// Runs the mount in this process, which has one thread so far. In the background the parent hears how it went.
fn serve(wanted: Wanted, reporter: Option<Reporter>) -> Result<i32, Failure> {
    let background = reporter.is_some();
    let mut reporter = reporter;
    let code = begin(wanted, background, &mut reporter);
    match (code, reporter) {
        (Err(failure), Some(reporter)) => {
            reporter.failed(&failure.to_string());
            process::exit_now(1);
        }
        (code, _) => code,
    }
}

/// How long the end of a mount waits for uploads that did not succeed so far.
const DRAIN: Duration = Duration::from_secs(20);

fn begin(wanted: Wanted, background: bool, reporter: &mut Option<Reporter>) -> Result<i32, Failure> {
    let Wanted { setup, plan, log, warnings, notes } = wanted;
    signals::block()?;
    process::prepare();
    logging::init(&log).map_err(|error| Failure::Line(error.to_string()))?;
    for warning in &warnings {
        warn(warning, background);
    }
    for note in &notes {
        tracing::info!("{note}");
    }
    let build = move || served(plan, background);
    let ready = || match reporter.take() {
        Some(reporter) => reporter.ready(),
        None => Ok(()),
    };
    Ok(run::run(setup, build, ready)?)
}

/// Builds what a plan asks for, ready to be served.
pub(super) fn served(plan: MountPlan, background: bool) -> common::Result<Served<Adapter>> {
    let parts = filesystem(&plan)?;
    let (fs, runtime, stage) = (parts.fs, parts.runtime, parts.stage);
    let seen = Arc::downgrade(&fs);
    let passthrough = move || match seen.upgrade() {
        Some(fs) => {
            let status = fs.status();
            (status.passthrough, status.passthrough_reason.unwrap_or_default())
        }
        None => (false, "the mount is being taken down".into()),
    };
    let staging = stage.as_ref().map_or_else(Weak::new, Arc::downgrade);
    let handle = runtime.handle().clone();
    let (telling, told, closing) = (Arc::downgrade(&fs), fs.notices().clone(), fs.notices().clone());
    let (settling, settled) = (runtime.handle().clone(), stage.as_ref().map(Arc::downgrade));
    Ok(Served {
        filesystem: parts.adapter,
        threads: parts.threads,
        read_only: !fs.takes_changes(),
        look: Duration::from_micros(plan.conf.get(&keys::fuse::REQUEST_LOOK_US)),
        passthrough: Arc::new(passthrough),
        web: Box::new(move || serve_metrics(&handle, &plan.conf, background)),
        notify: Box::new(move |notifier| notify::start(telling, told, notifier)),
        uploads: Arc::new(move || match staging.upgrade() {
            Some(stage) => Uploads::of(stage.pending()),
            None => Uploads::default(),
        }),
        settle: Arc::new(move |limit| match settled.as_ref().and_then(std::sync::Weak::upgrade) {
            Some(stage) => settling.block_on(stage.drain(limit)),
            // What is written elsewhere is there when it is answered.
            None => Ok(()),
        }),
        closes_itself: stage.is_some(),
        close: Box::new(move || {
            closing.close();
            drop(fs);
            if let Some(stage) = stage {
                if let Err(error) = runtime.block_on(stage.drain(DRAIN)) {
                    tracing::error!("{error}; the next mount of this storage on this host goes on with them");
                }
                stage.end();
            }
            runtime.shutdown_timeout(Duration::from_secs(5));
        }),
    })
}

fn serve_metrics(handle: &tokio::runtime::Handle, conf: &Conf, background: bool) -> Option<String> {
    let port = u16::try_from(conf.get(&keys::fuse::WEB_PORT)).ok().filter(|port| *port != 0)?;
    match web::start(handle, &conf.get(&keys::fuse::WEB_BIND_HOST), port) {
        Ok(address) => Some(address.to_string()),
        Err(warning) => {
            warn(&warning, background);
            None
        }
    }
}

/// A warning for the log, and for the terminal when the log is elsewhere.
fn warn(line: &str, background: bool) {
    tracing::warn!("{line}");
    if background {
        complain(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(list: &[&str]) -> String {
        let list: Vec<OsString> = list.iter().map(OsString::from).collect();
        names(&list, &Conf::defaults()).unwrap_err().to_string()
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(error(&["/mnt/x"]).contains("no under storage given: alluxio-fuse mount <uri or path> /mnt/x"));
        assert!(error(&["s3://b"]).contains("no mount point given"));
        assert!(error(&[]).contains("no under storage given"));
        assert!(error(&["", "/x"]).contains("empty name"));
        assert!(error(&["s3://", "/x"]).contains("bucket"));
    }

    #[test]
    fn relative_sources_become_absolute() {
        let list = [OsString::from("."), OsString::from("/no-such-mount-point")];
        let (uri, directory, point) = names(&list, &Conf::defaults()).unwrap();
        let here = std::env::current_dir().unwrap().canonicalize().unwrap();
        assert_eq!(uri.to_string(), format!("file://{}", here.display()));
        assert_eq!(directory, Some(here));
        assert_eq!(point, Path::new("/no-such-mount-point"));
    }

    #[test]
    fn logs_are_named_after_the_end_of_the_mount_point() {
        assert_eq!(log_name(Path::new("/mnt/data")), "mnt-data.log");
        assert!(log_name(Path::new(&format!("/{}", "ü".repeat(300)))).len() <= 204);
    }
}
