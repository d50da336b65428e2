//! Random readers in parallel, of a server that may do wrong: the frame of the property tests.

use std::sync::Barrier;

use nbdserve::source::{Http, HttpOptions};
use nbdserve::testing::{Rng, noise};
use nbdserve::{ByteRange, Cx};

use crate::server::{Asked, File, Reply, Server};
use crate::{options, read};

/// The bytes of `range` are those of the file.
pub(crate) fn assert_reads(http: &Http, bytes: &[u8], range: ByteRange) {
    let (start, end) = (range.start() as usize, range.end() as usize);
    let found = read(http, start, end - start);
    assert!(found == bytes[start..end], "{range}");
}

/// A file of noise, and who reads it.
pub(crate) struct Readers {
    /// Bytes of the file.
    pub(crate) len: usize,
    pub(crate) seed: u64,
    /// [`HttpOptions::memory`].
    pub(crate) memory: u64,
    /// How many read at the same time.
    pub(crate) count: u64,
    /// What each does so many times.
    pub(crate) turns: usize,
}

impl Readers {
    /// Serves the file as `serve` answers, and has each reader take its turns.
    pub(crate) fn run(
        &self,
        serve: impl Fn(&File, &Asked) -> Option<Reply> + Send + Sync + 'static,
        turn: impl Fn(&Http, &[u8], &mut Rng) + Sync,
    ) {
        let bytes = noise(self.len, self.seed);
        let file = File::new(bytes.clone());
        let server = Server::start(move |asked| serve(&file, asked));
        let memory = self.memory;
        let options = HttpOptions {
            memory,
            ..options()
        };
        let http = Http::open(&server.url("/disk"), &options, &Cx::new(0)).unwrap();
        let start = Barrier::new(self.count as usize);
        std::thread::scope(|scope| {
            for reader in 0..self.count {
                let (http, bytes, start, turn) = (&http, &bytes, &start, &turn);
                scope.spawn(move || {
                    let mut rng = Rng::new(self.seed.wrapping_add(reader));
                    start.wait();
                    for _ in 0..self.turns {
                        turn(http, bytes, &mut rng);
                    }
                });
            }
        });
    }
}
