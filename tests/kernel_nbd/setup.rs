//! A server in this process, a device of it, a file system on it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use loopmount::sys::block;
use loopmount::sys::nbd::Control;
use loopmount::target::kernel_mount::MountOptions;
use loopmount::target::kernel_nbd::{self, Disconnected, NbdDevice, NbdOptions};
use nbdserve::server::{End, Options, Server, flags_for};
use nbdserve::source::Memory;
use nbdserve::{Result, Volume};

/// For one step of a teardown.
pub(crate) const STEP: Duration = Duration::from_secs(60);

/// A server in this process with a thread per connection.
pub(crate) struct Serving {
    threads: Vec<JoinHandle<Result<End>>>,
}

impl Serving {
    /// Starts a server for `volume` and gives the kernel's ends of its connections.
    pub(crate) fn start(
        volume: &Volume,
        options: &Options,
        connections: usize,
    ) -> (Self, Vec<OwnedFd>) {
        let server = Arc::new(Server::new(volume.clone(), options));
        let mut threads = Vec::new();
        let mut kernel_ends = Vec::new();
        for _ in 0..connections {
            let (ours, theirs) = UnixStream::pair().expect("make a socket pair");
            kernel_ends.push(theirs.into());
            let server = Arc::clone(&server);
            threads.push(std::thread::spawn(move || server.serve(ours)));
        }
        (Self { threads }, kernel_ends)
    }

    /// Waits for all connections to end, as the kernel ends them.
    pub(crate) fn finish(self) {
        for thread in self.threads {
            let end = thread.join().expect("the server does not panic");
            assert_eq!(
                end.expect("the kernel keeps to the protocol"),
                End::Disconnected
            );
        }
    }
}

pub(crate) fn options<'a>(id: &'a str, volume: &Volume, read_only: bool) -> NbdOptions<'a> {
    NbdOptions {
        id,
        size: volume.size(),
        flags: flags_for(volume, read_only),
        timeout: Duration::from_secs(600),
        dead_conn_timeout: Duration::ZERO,
        block_size: 512,
    }
}

/// A server and a device for `volume`.
pub(crate) fn attach(
    volume: &Volume,
    id: &str,
    read_only: bool,
    connections: usize,
) -> (Serving, NbdDevice) {
    let serve = Options {
        read_only,
        ..Options::default()
    };
    let (serving, ends) = Serving::start(volume, &serve, connections);
    let device =
        kernel_nbd::connect(ends, &options(id, volume, read_only)).expect("connect a device");
    (serving, device)
}

pub(crate) fn mount_options(read_only: bool) -> MountOptions<'static> {
    MountOptions {
        fstype: "ext4",
        read_only,
        first_pass: false,
        options: "",
    }
}

pub(crate) fn mount_point() -> PathBuf {
    let target = PathBuf::from("/tmp/mnt");
    fs::create_dir_all(&target).expect("make a mount point");
    target
}

/// An ext4 of 16 MiB that holds the file `hello`.
pub(crate) fn ext4() -> Volume {
    fs::create_dir_all("/tmp/content").expect("make a folder");
    fs::write("/tmp/content/hello", "hello from ext4").expect("write a file");
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-d", "/tmp/content", "/tmp/ext4", "16M"])
        .output()
        .expect("mkfs.ext4 is missing: apt-get install e2fsprogs");
    assert!(made.status.success(), "{made:?}");
    Memory::volume(fs::read("/tmp/ext4").expect("read the image"))
}

pub(crate) fn assert_no_device_is_left() {
    assert_eq!(kernel_nbd::find().expect("list our devices"), []);
    let mut control = Control::open().expect("netlink").expect("nbd is loaded");
    let connected: Vec<_> = control
        .list()
        .expect("list the devices")
        .into_iter()
        .filter(|status| status.connected)
        .collect();
    assert_eq!(connected, []);
    for (_, device) in block::BlockDevice::all("nbd").expect("read /sys/block") {
        assert_eq!(device.attribute("pid"), None, "{}", device.name());
    }
}

/// Waits for `what` to become true.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + STEP;
    while !holds() {
        assert!(Instant::now() < deadline, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn disconnect(device: NbdDevice, id: &str) {
    let done = device.disconnect(id, STEP).expect("disconnect");
    assert_eq!(done, Disconnected::Done);
}

/// The tasks in uninterruptible sleep.
pub(crate) fn tasks_in_d_state() -> Vec<String> {
    let threads = fs::read_dir("/proc")
        .expect("read /proc")
        .filter_map(|entry| fs::read_dir(entry.ok()?.path().join("task")).ok())
        .flatten();
    threads
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter(|stat| {
            let state = stat.rsplit(')').next().unwrap_or_default();
            state.trim_start().starts_with('D')
        })
        .collect()
}
