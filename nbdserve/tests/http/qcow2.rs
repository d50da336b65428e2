//! What a qcow2 image costs to read over http.

use nbdserve::layer;
use nbdserve::testing::{Rng, noise, tools};
use nbdserve::{Cx, Volume};

use crate::open;
use crate::server::{File, Server};

const MIB: usize = 1 << 20;

/// `len` bytes that shrink to about half, and what qemu-img makes of them.
fn image(len: usize, options: &[&str]) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = noise(len, 1);
    for piece in bytes.chunks_mut(64) {
        let half = piece.len() / 2;
        piece[half..].fill(7);
    }
    let dir = tempfile::tempdir().unwrap();
    let (raw, image) = (dir.path().join("raw"), dir.path().join("image"));
    std::fs::write(&raw, &bytes).unwrap();
    let mut command = tools::command("qemu-img");
    command.args(["convert", "-f", "raw", "-O", "qcow2"]);
    tools::run_command(command.args(options).arg(&raw).arg(&image));
    (bytes, std::fs::read(image).unwrap())
}

fn open_qcow2(server: &Server, cx: &Cx) -> (Volume, Volume) {
    let http = Volume::new(open(&server.url("/disk.qcow2")).unwrap());
    let volume = (layer::qcow2::QCOW2.open)(&http, &layer::Args::new(), cx).unwrap();
    (http, volume)
}

fn fetched(server: &Server) -> usize {
    let ranges = server.ranges();
    ranges.iter().map(|(first, last)| last + 1 - first).sum()
}

#[test]
fn opening_is_few_requests_and_a_random_read_is_one() {
    for (options, most) in [(&[][..], 3), (&["-c"], 3), (&["-o", "cluster_size=4k"], 4)] {
        let (bytes, packed) = image(24 * MIB, options);
        let server = Server::of(&File::new(packed));
        let cx = Cx::new(64 << 20);
        let (_http, volume) = open_qcow2(&server, &cx);
        let opened = server.ranges();
        assert!(opened.len() <= most, "{options:?}: {opened:?}");
        let mut rng = Rng::new(4);
        let mut reads = 0;
        for _ in 0..12 {
            let at = rng.below(24 * MIB as u64 - 4096) & !0xfff;
            let found = volume.read_vec(at, 4096).unwrap();
            assert!(found == bytes[at as usize..at as usize + 4096]);
            reads += 1;
        }
        let ranges = server.ranges();
        // Some need an L2 table first, where one is for 2 MiB only.
        let tables = if options.contains(&"cluster_size=4k") {
            12
        } else {
            1
        };
        assert!(
            ranges.len() <= opened.len() + reads + tables,
            "{options:?}: {ranges:?}"
        );
        volume.close().unwrap();
    }
}

#[test]
fn all_of_it_is_fetched_once_with_few_requests() {
    for options in [&[][..], &["-c"], &["-o", "extended_l2=on"]] {
        let (bytes, packed) = image(12 * MIB, options);
        let server = Server::of(&File::new(packed.clone()));
        let cx = Cx::new(64 << 20);
        let (_http, volume) = open_qcow2(&server, &cx);
        for at in (0..bytes.len()).step_by(128 << 10) {
            let found = volume.read_vec(at as u64, 128 << 10).unwrap();
            assert!(found == bytes[at..at + (128 << 10)]);
        }
        assert!(fetched(&server) <= packed.len(), "{options:?}");
        let ranges = server.ranges();
        assert!(
            ranges.len() <= 20,
            "{options:?}: {} requests: {ranges:?}",
            ranges.len()
        );
        volume.close().unwrap();
    }
}
