//! Kernel nbd against our server, inside user-mode Linux. Needs user-mode-linux, kmod, e2fsprogs,
//! nbdkit and nbd-client.

#[path = "kernel_nbd/odd.rs"]
mod odd;
#[path = "kernel_nbd/process.rs"]
mod process;
#[path = "kernel_nbd/setup.rs"]
mod setup;
#[path = "common/uml.rs"]
mod uml;

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use loopmount::sys::block;
use loopmount::sys::nbd::LinkEvents;
use loopmount::sys::process::wait_readable;
use loopmount::target::kernel_mount::mount_fs;
use loopmount::target::kernel_nbd::{self, Availability, Disconnected, NbdOptions, availability};
use nbdfuse::mount::{Mode, Unmounted, unmount};
use nbdserve::Kind;
use nbdserve::proto::TransmissionFlags;
use nbdserve::server::{Options, Server, pad_to_block};
use nbdserve::source::Memory;
use nix::mount::{MsFlags, mount};

use odd::Odd;
use process::{SERVE, ServerProcess, hanging_read, is_server_process, odd_options};
use setup::{
    STEP, Serving, assert_no_device_is_left, attach, disconnect, eventually, ext4, mount_options,
    mount_point, options, tasks_in_d_state,
};

/// For one test in its kernel.
const LIMIT: Duration = Duration::from_secs(600);
const MIB: u64 = 1 << 20;

#[test]
fn what_is_written_reaches_the_volume_and_the_device_goes() {
    uml::inside(
        "what_is_written_reaches_the_volume_and_the_device_goes",
        LIMIT,
        || {
            assert_eq!(availability().unwrap(), Availability::Ready);
            let volume = Memory::volume(vec![0; 8 << 20]);
            let (serving, device) = attach(&volume, "write", false, 4);
            assert_eq!(block::size(&device.node).unwrap(), 8 * MIB);
            let sys = block::BlockDevice::named(&format!("nbd{}", device.index)).unwrap();
            assert_eq!(sys.attribute("queue/logical_block_size").unwrap(), "512");
            assert_eq!(sys.attribute("queue/max_sectors_kb").unwrap(), "1024");
            assert_eq!(sys.attribute("backend").unwrap(), "loopmount:write");
            let pattern: Vec<u8> = (0..3 * MIB).map(|i| (i * 7 + i / 512) as u8).collect();
            device.node.write_all_at(&pattern, 4096).unwrap();
            // Nothing is synced: the end of the device has to do it.
            disconnect(device, "write");
            assert_eq!(volume.read_vec(4096, pattern.len()).unwrap(), pattern);
            serving.finish();
            assert_no_device_is_left();
        },
    );
}

#[test]
fn a_file_system_is_written_and_read_again() {
    uml::inside("a_file_system_is_written_and_read_again", LIMIT, || {
        let volume = ext4();
        let target = mount_point();
        for read_only in [false, true] {
            let (serving, device) = attach(&volume, "fs", read_only, 2);
            mount_fs(&device.path, &target, &mount_options(read_only)).unwrap();
            assert_eq!(
                fs::read_to_string(target.join("hello")).unwrap(),
                "hello from ext4"
            );
            if read_only {
                assert_eq!(fs::read(target.join("new")).unwrap(), vec![5; 2 << 20]);
                assert!(fs::write(target.join("more"), "x").is_err());
            } else {
                fs::write(target.join("new"), vec![5; 2 << 20]).unwrap();
                let busy = kernel_nbd::disconnect(device.index, "fs", Duration::ZERO).unwrap();
                assert_eq!(busy, Disconnected::Busy);
            }
            assert_eq!(unmount(&target, Mode::Normal).unwrap(), Unmounted::Done);
            disconnect(device, "fs");
            serving.finish();
        }
        assert_no_device_is_left();
    });
}

#[test]
fn fsync_of_the_device_is_a_flush_of_the_volume() {
    uml::inside(
        "fsync_of_the_device_is_a_flush_of_the_volume",
        LIMIT,
        || {
            let (volume, flushes, _) = Odd::volume();
            let (serving, device) = attach(&volume, "flush", false, 1);
            device.node.write_all_at(&[1; 4096], 0).unwrap();
            let before = flushes.load(Ordering::SeqCst);
            device.node.sync_all().unwrap();
            assert_eq!(flushes.load(Ordering::SeqCst), before + 1);
            let trimmed = Command::new("blkdiscard")
                .args(["-o", "0", "-l", "1048576"])
                .arg(&device.path)
                .output()
                .expect("blkdiscard is missing: apt-get install util-linux");
            assert!(trimmed.status.success(), "{trimmed:?}");
            disconnect(device, "flush");
            serving.finish();
        },
    );
}

#[test]
fn a_hundred_cycles_leave_no_device() {
    uml::inside("a_hundred_cycles_leave_no_device", LIMIT, || {
        let volume = ext4();
        let target = mount_point();
        for cycle in 0..100 {
            let id = format!("cycle{cycle}");
            let (serving, device) = attach(&volume, &id, true, 2);
            mount_fs(&device.path, &target, &mount_options(true)).unwrap();
            assert_eq!(
                fs::read_to_string(target.join("hello")).unwrap(),
                "hello from ext4"
            );
            let found = kernel_nbd::find().unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!((found[0].index, &found[0].id), (device.index, &id));
            assert_eq!(unmount(&target, Mode::Normal).unwrap(), Unmounted::Done);
            disconnect(device, &id);
            serving.finish();
            assert_no_device_is_left();
        }
    });
}

#[test]
fn the_device_goes_with_its_last_holder() {
    uml::inside("the_device_goes_with_its_last_holder", LIMIT, || {
        let volume = ext4();
        let (serving, device) = attach(&volume, "holder", true, 1);
        // What happens when the process that holds it is killed.
        drop(device);
        serving.finish();
        eventually("the device is gone", || {
            kernel_nbd::find().unwrap().is_empty()
        });

        // A mount is a holder too.
        let target = mount_point();
        let (serving, device) = attach(&volume, "holder", true, 1);
        mount_fs(&device.path, &target, &mount_options(true)).unwrap();
        drop(device);
        assert_eq!(
            fs::read_to_string(target.join("hello")).unwrap(),
            "hello from ext4"
        );
        assert_eq!(unmount(&target, Mode::Normal).unwrap(), Unmounted::Done);
        serving.finish();
        eventually("the device is gone", || {
            kernel_nbd::find().unwrap().is_empty()
        });
        let again = kernel_nbd::disconnect(0, "holder", STEP).unwrap();
        assert_eq!(again, Disconnected::Done, "undoing twice is harmless");
        assert!(!kernel_nbd::sever(0, "holder").unwrap());
        assert_no_device_is_left();
    });
}

#[test]
fn a_holder_elsewhere_keeps_the_number_but_not_the_connection() {
    let name = "a_holder_elsewhere_keeps_the_number_but_not_the_connection";
    uml::inside(name, LIMIT, || {
        let volume = ext4();
        let (serving, device) = attach(&volume, "held", true, 1);
        let holder = File::open(&device.path).unwrap();
        let error = device
            .disconnect("held", Duration::from_secs(1))
            .unwrap_err();
        assert_eq!(error.kind(), Kind::TimedOut);
        serving.finish();
        drop(holder);
        eventually("the device is gone", || {
            kernel_nbd::find().unwrap().is_empty()
        });
        assert_no_device_is_left();
    });
}

#[test]
fn kill_of_the_server_with_io_in_flight_is_seen_and_severed() {
    const NAME: &str = "kill_of_the_server_with_io_in_flight_is_seen_and_severed";
    if is_server_process() {
        return;
    }
    uml::inside(NAME, LIMIT, || {
        let mut events = LinkEvents::subscribe().unwrap().unwrap();
        let (mut server, end) = ServerProcess::start(NAME);
        // The kernel's own timeout is far away: only sever() can end the wait.
        let options = odd_options("killed", Duration::from_secs(600));
        let device = kernel_nbd::connect(vec![end], &options).unwrap();
        let reader = hanging_read(&device);
        let writer = File::options().write(true).open(&device.path).unwrap();
        writer.write_all_at(&[1; 65536], MIB).unwrap();
        eventually("the read hangs", || !tasks_in_d_state().is_empty());
        assert!(!wait_readable(events.as_fd(), Duration::ZERO).unwrap());
        server.kill();

        assert!(wait_readable(events.as_fd(), STEP).unwrap(), "LINK_DEAD");
        let dead = events.take().unwrap();
        assert_eq!(dead.devices, [device.index]);
        assert!(!dead.overrun);
        assert!(!reader.is_finished(), "the kernel alone leaves it hanging");

        assert!(kernel_nbd::sever(device.index, "killed").unwrap());
        let error = reader.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        drop((device, writer));
        eventually("the device is gone", || {
            kernel_nbd::find().unwrap().is_empty()
        });
        eventually("nothing is in D state", || tasks_in_d_state().is_empty());
        assert_no_device_is_left();
    });
}

#[test]
fn a_mount_whose_server_is_killed_can_be_unmounted() {
    const NAME: &str = "a_mount_whose_server_is_killed_can_be_unmounted";
    if env::var_os(SERVE).is_some() {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let volume = Memory::volume(fs::read("/tmp/ext4").unwrap());
        let _ = Server::new(volume, &Options::default()).serve(socket.into());
        return;
    }
    uml::inside(NAME, LIMIT, || {
        let volume = ext4();
        let target = mount_point();
        let (mut server, end) = ServerProcess::start(NAME);
        let device = kernel_nbd::connect(vec![end], &options("m", &volume, false)).unwrap();
        mount_fs(&device.path, &target, &mount_options(false)).unwrap();
        let mut open = File::create(target.join("new")).unwrap();
        open.write_all(&vec![1; 1 << 20]).unwrap();
        server.kill();
        assert!(kernel_nbd::sever(device.index, "m").unwrap());
        assert!(
            open.sync_all().is_err(),
            "what cannot be stored is not passed over"
        );
        drop(open);
        assert_eq!(unmount(&target, Mode::Normal).unwrap(), Unmounted::Done);
        drop(device);
        eventually("the device is gone", || {
            kernel_nbd::find().unwrap().is_empty()
        });
        eventually("nothing is in D state", || tasks_in_d_state().is_empty());
        assert_no_device_is_left();
    });
}

#[test]
fn a_server_that_hangs_is_given_up_after_the_timeout() {
    const NAME: &str = "a_server_that_hangs_is_given_up_after_the_timeout";
    if is_server_process() {
        return;
    }
    uml::inside(NAME, LIMIT, || {
        let mut events = LinkEvents::subscribe().unwrap().unwrap();
        let (_server, end) = ServerProcess::start(NAME);
        let options = odd_options("stuck", Duration::from_secs(2));
        let device = kernel_nbd::connect(vec![end], &options).unwrap();
        let reader = hanging_read(&device);
        let error = reader.join().unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        assert!(wait_readable(events.as_fd(), STEP).unwrap(), "LINK_DEAD");
        assert_eq!(events.take().unwrap().devices, [device.index]);
        // The orderly way ends as well, and says that nobody has confirmed the last flush.
        let error = device.disconnect("stuck", STEP).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert_no_device_is_left();
    });
}

#[test]
fn what_cannot_be_written_back_is_reported_and_the_device_goes_all_the_same() {
    const NAME: &str = "what_cannot_be_written_back_is_reported_and_the_device_goes_all_the_same";
    if is_server_process() {
        return;
    }
    uml::inside(NAME, LIMIT, || {
        let (mut server, end) = ServerProcess::start(NAME);
        let options = odd_options("lost", Duration::from_secs(2));
        let device = kernel_nbd::connect(vec![end], &options).unwrap();
        device.node.write_all_at(&[1; 65536], MIB).unwrap();
        server.kill();
        let error = device.disconnect("lost", STEP).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.to_string().contains("write back"), "{error}");
        eventually("the device is gone", || {
            kernel_nbd::find().unwrap().is_empty()
        });
        assert_no_device_is_left();
    });
}

#[test]
fn devices_of_others_are_left_alone() {
    uml::inside("devices_of_others_are_left_alone", LIMIT, || {
        let volume = ext4();
        let (serving, device) = attach(&volume, "mine", true, 1);
        for attempt in [
            kernel_nbd::disconnect(device.index, "yours", STEP).map(drop),
            kernel_nbd::sever(device.index, "yours").map(drop),
        ] {
            let error = attempt.unwrap_err();
            assert_eq!(error.kind(), Kind::Denied);
            assert!(error.to_string().contains("loopmount:mine"), "{error}");
        }
        let mut server = Command::new("nbdkit")
            .args(["-f", "-U", "/tmp/socket", "memory", "1M"])
            .spawn()
            .expect("nbdkit is missing: apt-get install nbdkit");
        eventually("nbdkit listens", || Path::new("/tmp/socket").exists());
        let other = if device.index == 0 { 1 } else { 0 };
        let client = Command::new("nbd-client")
            .args(["-unix", "/tmp/socket", &format!("/dev/nbd{other}")])
            .output()
            .expect("nbd-client is missing: apt-get install nbd-client");
        assert!(client.status.success(), "{client:?}");
        let error = kernel_nbd::sever(other, "mine").unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(kernel_nbd::find().unwrap().len(), 1);
        let done = Command::new("nbd-client")
            .args(["-d", &format!("/dev/nbd{other}")])
            .output();
        assert!(done.unwrap().status.success());
        server.kill().unwrap();
        server.wait().unwrap();
        disconnect(device, "mine");
        serving.finish();
    });
}

#[test]
fn a_node_is_made_where_dev_has_none_and_removed_again() {
    let name = "a_node_is_made_where_dev_has_none_and_removed_again";
    uml::inside(name, LIMIT, || {
        // As in a container.
        let tmpfs = |target, flags| {
            mount(Some("none"), target, Some("tmpfs"), flags, None::<&str>).unwrap();
        };
        tmpfs("/dev", MsFlags::empty());
        let volume = Memory::volume(vec![7; 1 << 20]);
        for folder in ["/run/loopmount-dev/", "/dev/loopmount."] {
            let (serving, device) = attach(&volume, "node", true, 1);
            let path = device.path.to_str().unwrap().to_owned();
            assert_eq!(path, format!("{folder}nbd{}", device.index));
            assert_eq!(fs::read(&path).unwrap(), vec![7; 1 << 20]);
            disconnect(device, "node");
            serving.finish();
            assert!(!Path::new(&path).exists());
            assert!(!Path::new("/run/loopmount-dev").exists());
            // Many systems allow no devices there; the next round has to go elsewhere.
            tmpfs("/run", MsFlags::MS_REMOUNT | MsFlags::MS_NODEV);
        }
    });
}

#[test]
fn an_image_of_odd_length_keeps_its_tail() {
    uml::inside("an_image_of_odd_length_keeps_its_tail", LIMIT, || {
        let image: Vec<u8> = (0..100_001_u32).map(|i| (i % 251) as u8 + 1).collect();
        let volume = pad_to_block(&Memory::volume(image.clone()), 512).unwrap();
        let (serving, device) = attach(&volume, "tail", true, 1);
        let shown = fs::read(&device.path).unwrap();
        assert_eq!(shown.len(), 100_001_usize.next_multiple_of(512));
        assert_eq!(shown[..image.len()], image);
        assert!(shown[image.len()..].iter().all(|byte| *byte == 0));
        disconnect(device, "tail");
        serving.finish();
    });
}

#[test]
fn what_cannot_be_connected_leaves_nothing() {
    uml::inside("what_cannot_be_connected_leaves_nothing", LIMIT, || {
        let volume = Memory::volume(vec![0; 1 << 20]);
        let attempt = |ends, options: &NbdOptions<'_>| {
            let error = kernel_nbd::connect(ends, options).unwrap_err();
            assert_no_device_is_left();
            error
        };
        let good = options("bad", &volume, true);
        let file = File::open("/proc/self/stat").unwrap();
        attempt(vec![file.into()], &good);
        attempt(Vec::new(), &good);
        let odd_block = NbdOptions {
            block_size: 1000,
            ..good
        };
        let (_serving, ends) = Serving::start(&volume, &Options::default(), 1);
        attempt(ends, &odd_block);
        let single = NbdOptions {
            flags: TransmissionFlags::HAS_FLAGS,
            ..good
        };
        let (_serving, ends) = Serving::start(&volume, &Options::default(), 2);
        assert_eq!(attempt(ends, &single).kind(), Kind::Unsupported);
    });
}

#[test]
fn without_the_right_or_the_module_it_is_said_so() {
    uml::inside(
        "without_the_right_or_the_module_it_is_said_so",
        LIMIT,
        || {
            let nobody = nix::unistd::Uid::from_raw(65534);
            nix::unistd::seteuid(nobody).unwrap();
            assert_eq!(availability().unwrap(), Availability::Forbidden);
            let volume = Memory::volume(vec![0; 1 << 20]);
            let (_serving, ends) = Serving::start(&volume, &Options::default(), 1);
            let error = kernel_nbd::connect(ends, &options("nobody", &volume, true)).unwrap_err();
            assert_eq!(error.kind(), Kind::Denied);
            assert!(error.report().hint.is_some());
            nix::unistd::seteuid(nix::unistd::Uid::from_raw(0)).unwrap();

            let removed = Command::new("rmmod").arg("nbd").output().unwrap();
            assert!(removed.status.success(), "{removed:?}");
            assert_eq!(availability().unwrap(), Availability::NoModule);
            assert!(LinkEvents::subscribe().unwrap().is_none());
            let (_serving, ends) = Serving::start(&volume, &Options::default(), 1);
            let error = kernel_nbd::connect(ends, &options("none", &volume, true)).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
        },
    );
}
