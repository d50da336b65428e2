//! How fast an encrypted disk is read without anything around the layer: `luks_speed IMAGE KEYFILE
//! [THREADS]` prints MiB/s. It is read again and again for a while, as `openssl speed` does its work:
//! a processor that has rested takes some tenths of a second to be as fast as it can.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nbdserve::layer::Args;
use nbdserve::layer::luks::LUKS;
use nbdserve::secret::{OneSecret, Secret};
use nbdserve::source::{File, OpenMode};
use nbdserve::{Cx, Error, Result, Volume};

/// Bytes per read.
const PIECE: u64 = 1 << 20;
/// At least so long.
const WHILE: Duration = Duration::from_secs(2);
/// For a layer that keeps nothing.
const MEMORY: u64 = 64 << 20;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(image), Some(key)) = (args.next(), args.next()) else {
        eprintln!("usage: luks_speed IMAGE KEYFILE [THREADS]");
        return ExitCode::from(2);
    };
    let threads = args.next().and_then(|text| text.parse().ok()).unwrap_or(1);
    match measure(Path::new(&image), Path::new(&key), threads) {
        Ok(speed) => {
            println!("{speed:.1}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{}", error.report());
            ExitCode::FAILURE
        }
    }
}

fn measure(image: &Path, key: &Path, threads: usize) -> Result<f64> {
    let key = std::fs::read(key).map_err(|error| Error::io("cannot read the key", error))?;
    let mut cx = Cx::new(MEMORY);
    cx.secrets = Arc::new(OneSecret(Secret::new(key)));
    let source = Volume::new(File::open(image, OpenMode::ReadOnly)?);
    let disk =
        (LUKS.open)(&source, &Args::new(), &cx).map_err(|error| error.in_layer(LUKS.name))?;
    let begin = Instant::now();
    let mut bytes = 0;
    while begin.elapsed() < WHILE {
        read_all(&disk, threads)?;
        bytes += disk.size();
    }
    Ok(bytes as f64 / begin.elapsed().as_secs_f64() / f64::from(1 << 20))
}

fn read_all(disk: &Volume, threads: usize) -> Result<()> {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads.max(1))
            .map(|_| scope.spawn(|| read(disk, &next)))
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().unwrap_or(Ok(())))
    })
}

/// Reads the pieces that nobody else has begun with.
fn read(disk: &Volume, next: &AtomicU64) -> Result<()> {
    let mut buf = vec![0; PIECE as usize];
    loop {
        let at = next.fetch_add(PIECE, Ordering::Relaxed);
        if at >= disk.size() {
            return Ok(());
        }
        let len = PIECE.min(disk.size() - at) as usize;
        disk.read_at(&mut buf[..len], at)?;
    }
}
