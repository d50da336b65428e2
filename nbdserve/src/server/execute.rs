//! Carrying out one checked request on a volume.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::proto::{Errno, Request};
use crate::{Done, Result, Volume, VolumeWriter};

/// Carries out `request`. `data` is as long as the request's range: the payload of a WRITE, or
/// what a READ fills. The bytes of a failed READ are undefined.
///
/// Always returns: a panic below is answered with EIO, since a client that gets no answer hangs.
pub(super) fn execute(volume: &Volume, request: &Request, data: &mut [u8]) -> Result<(), Errno> {
    let outcome = catch_unwind(AssertUnwindSafe(|| attempt(volume, request, data)));
    match outcome {
        Ok(Ok(Done::Yes)) => Ok(()),
        Ok(Ok(Done::Declined)) => Err(Errno::NotSup),
        Ok(Err(error)) => {
            tracing::warn!("{}: {}", describe(request), error.report());
            Err(Errno::from(&error))
        }
        Err(_) => {
            tracing::error!(
                "{}: the code that serves it panicked, answered with an I/O error",
                describe(request)
            );
            Err(Errno::Io)
        }
    }
}

fn attempt(volume: &Volume, request: &Request, data: &mut [u8]) -> Result<Done> {
    match *request {
        Request::Read { range } => volume.read_at(data, range.start())?,
        Request::Write { range, fua } => writer(volume)?.write_at(data, range.start(), fua)?,
        Request::Flush => writer(volume)?.flush()?,
        Request::Trim { range, fua } => writer(volume)?.trim(range, fua)?,
        Request::Cache { range } => volume.will_need(range),
        Request::WriteZeroes { range, opts } => return writer(volume)?.zero(range, opts),
        // Ends the connection; nothing to do on the volume.
        Request::Disconnect => {}
    }
    Ok(Done::Yes)
}

fn writer(volume: &Volume) -> Result<VolumeWriter<'_>> {
    volume
        .writer()
        .ok_or_else(|| crate::Error::new(crate::Kind::ReadOnly, "the image cannot be written"))
}

/// The request as the log has it.
fn describe(request: &Request) -> String {
    match request {
        Request::Read { range } => format!("read of {range}"),
        Request::Write { range, .. } => format!("write of {range}"),
        Request::Trim { range, .. } => format!("trim of {range}"),
        Request::Cache { range } => format!("prefetch of {range}"),
        Request::WriteZeroes { range, .. } => format!("zeroing of {range}"),
        Request::Flush => "flush".to_owned(),
        Request::Disconnect => "disconnect".to_owned(),
    }
}
