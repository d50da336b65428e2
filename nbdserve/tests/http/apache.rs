//! Several ranges with one request, as Apache answers them.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nbdserve::testing::{noise, tools};
use nbdserve::{ByteRange, Device};
use tempfile::TempDir;

use crate::{open, read};

const MIB: usize = 1 << 20;
const MODULES: &str = "/usr/lib/apache2/modules";

/// A running Apache that serves one folder; it ends when dropped.
struct Apache {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl Apache {
    /// Serves `bytes` as `/disk`, with `lines` in its configuration. The address `ip` is for this one alone:
    /// nobody else takes its port between the look for a free one and its start.
    fn start(ip: &str, bytes: &[u8], lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // When it is started by root it reads as somebody else.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        std::fs::write(dir.path().join("disk"), bytes).unwrap();
        // Free a moment ago.
        let free = TcpListener::bind((ip, 0)).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let place = dir.path().display();
        let conf = format!(
            "ServerRoot {place}\nDocumentRoot {place}\nDefaultRuntimeDir {place}\n\
             PidFile {place}/pid\nErrorLog {place}/log\n\
             ServerName localhost\nListen {address}\n\
             LoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
             LoadModule authz_core_module {MODULES}/mod_authz_core.so\n\
             User nobody\nGroup nogroup\n{lines}\n"
        );
        std::fs::write(dir.path().join("conf"), conf).unwrap();
        let child = tools::command("apache2")
            .args(["-DFOREGROUND", "-f"])
            .arg(dir.path().join("conf"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("apache2 (Debian package apache2-bin): {error}"));
        let mut apache = Self {
            child,
            address,
            dir,
        };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            let log = || std::fs::read_to_string(apache.dir.path().join("log"));
            assert!(apache.child.try_wait().unwrap().is_none(), "{:?}", log());
            assert!(began.elapsed() < Duration::from_secs(30), "{:?}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        apache
    }
}

impl Drop for Apache {
    fn drop(&mut self) {
        // SIGTERM lets it end its children.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Hints at `count` pages and reads them. Returns requests and bytes.
fn read_pages(apache: &Apache, bytes: &[u8], count: usize) -> (u64, u64) {
    let http = open(&format!("http://{}/disk", apache.address)).unwrap();
    let opened = http.stats();
    let pages: Vec<_> = (1..=count).map(|page| page * MIB / 4).collect();
    for some in pages.chunks(count.div_ceil(2)) {
        let ranges = some.iter().map(|at| {
            let at = *at as u64;
            ByteRange::between(at, at + 4096)
        });
        http.will_need_parts(&ranges.collect::<Vec<_>>());
        for at in some {
            assert!(read(&http, *at, 4096) == bytes[*at..*at + 4096]);
        }
    }
    let stats = http.stats();
    assert_eq!(stats.retries, 0);
    (stats.requests - opened.requests, stats.bytes - opened.bytes)
}

#[test]
fn apache_sends_many_ranges_with_one_answer() {
    let bytes = noise(16 * MIB, 3);
    let apache = Apache::start("127.0.0.2", &bytes, "");
    let (requests, fetched) = read_pages(&apache, &bytes, 60);
    assert_eq!(requests, 2);
    // And what is left of the first 256 KiB when it is counted.
    assert!(fetched < 60 * (4096 + 120) + (256 << 10), "{fetched}");
}

#[test]
fn an_apache_with_a_limit_sends_all_and_is_asked_for_one_range_at_a_time() {
    let bytes = noise(16 * MIB, 3);
    let apache = Apache::start("127.0.0.4", &bytes, "MaxRanges 3");
    let (requests, fetched) = read_pages(&apache, &bytes, 20);
    assert_eq!(requests, 1 + 20);
    assert!(fetched < 1 << 20, "{fetched}");
}
