//! Files and directories that move and go while they are in use.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    sync::atomic::{AtomicBool, Ordering},
};

use tests::mounts_work;

use crate::{WAYS, mount};

/// Ends a loop when whoever made it is done or has failed.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn work_goes_on_below_a_directory_that_is_renamed_all_the_time() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        std::fs::create_dir_all(mount.join("a/inner")).unwrap();
        let inner = File::open(mount.join("a/inner")).unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mover = scope.spawn(|| {
                let mut renames = 0;
                while !ended.load(Ordering::Relaxed) {
                    let (from, to) = if renames % 2 == 0 { ("a", "b") } else { ("b", "a") };
                    std::fs::rename(mount.join(from), mount.join(to)).unwrap();
                    // Another directory at the old place, for a moment: nothing must go there.
                    std::fs::create_dir_all(mount.join(from).join("inner")).unwrap();
                    std::fs::remove_dir(mount.join(from).join("inner")).unwrap();
                    std::fs::remove_dir(mount.join(from)).unwrap();
                    renames += 1;
                }
                renames
            });
            {
                let _ends = Ends(&ended);
                // Relative to the open directory, which moves.
                let here = |name: &str| {
                    use std::os::fd::AsRawFd as _;
                    std::path::PathBuf::from(format!("/proc/self/fd/{}/{name}", inner.as_raw_fd()))
                };
                for number in 0..300 {
                    let name = format!("file{number}");
                    std::fs::write(here(&name), &name).unwrap_or_else(|error| panic!("write {name}: {error}"));
                    assert_eq!(std::fs::read_to_string(here(&name)).unwrap(), name);
                    std::fs::rename(here(&name), here("moved")).unwrap();
                    assert_eq!(std::fs::metadata(here("moved")).unwrap().len(), name.len() as u64);
                    std::fs::remove_file(here("moved")).unwrap();
                }
                std::fs::write(here("last"), "here").unwrap();
            }
            assert!(mover.join().unwrap() > 0);
        });
        let place = ["a/inner/last", "b/inner/last"].map(|path| source.path().join(path).exists());
        assert_eq!(place.iter().filter(|there| **there).count(), 1);
        drop(inner);
        mount.stop();
    }
}

#[test]
fn a_removed_file_is_whole_until_it_is_closed() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        let path = mount.join("file");
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(b"before").unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another file").unwrap();
        file.write_all(b" and after").unwrap();
        file.set_len(12).unwrap();
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o4711)).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!((meta.nlink(), meta.len(), meta.mode() & 0o7777), (0, 12, 0o4711));
        assert_ne!(meta.ino(), std::fs::metadata(&path).unwrap().ino());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before and a");
        file.sync_all().unwrap();
        // Opened once more through its descriptor.
        let mut again = String::new();
        use std::os::fd::AsRawFd as _;
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        File::open(link).unwrap().read_to_string(&mut again).unwrap();
        assert_eq!(again, "before and a");
        assert_eq!(std::fs::read_to_string(source.path().join("file")).unwrap(), "another file");
        drop(file);
        mount.stop();
    }
}

#[test]
fn inode_numbers_stay_through_renames_and_are_shared_by_hard_links() {
    if !mounts_work() {
        return;
    }
    let (source, mount) = mount(WAYS[0]);
    std::fs::create_dir(mount.join("d")).unwrap();
    std::fs::write(mount.join("d/f"), "text").unwrap();
    let ino = |path: &str| std::fs::metadata(mount.join(path)).unwrap().ino();
    let (d, f) = (ino("d"), ino("d/f"));
    std::fs::hard_link(mount.join("d/f"), mount.join("g")).unwrap();
    assert_eq!((ino("g"), std::fs::metadata(mount.join("d/f")).unwrap().nlink()), (f, 2));
    std::fs::rename(mount.join("d"), mount.join("e")).unwrap();
    assert_eq!((ino("e"), ino("e/f")), (d, f));
    std::fs::remove_file(mount.join("e/f")).unwrap();
    let left = std::fs::metadata(mount.join("g")).unwrap();
    assert_eq!((left.ino(), left.nlink()), (f, 1));
    std::fs::hard_link(source.path().join("g"), source.path().join("made beside")).unwrap();
    assert_eq!(ino("made beside"), f, "links made at the source are known too");
    std::fs::write(mount.join("new"), "text").unwrap();
    std::fs::rename(mount.join("new"), mount.join("g")).unwrap();
    assert_ne!(ino("g"), f);
    mount.stop();
}

#[test]
fn a_program_that_was_just_written_runs() {
    if !mounts_work() {
        return;
    }
    for way in WAYS {
        let (source, mount) = mount(way);
        let path = mount.join("program");
        std::fs::copy("/bin/true", &path).unwrap();
        // Also at the source: nobody has it open for writing any more.
        for path in [path, source.path().join("program")] {
            tests::wait_for("the program runs", || match std::process::Command::new(&path).status() {
                Ok(status) => {
                    assert!(status.success());
                    Some(())
                }
                Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => None,
                Err(error) => panic!("{}: {error}", path.display()),
            });
        }
        mount.stop();
    }
}
