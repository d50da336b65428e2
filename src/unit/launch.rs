//! The launcher: what the user typed becomes a unit, and the command returns when it is usable.

use std::sync::Arc;

use nbdserve::error::Report;
use nbdserve::{Error, Kind, Result};

use super::channel::Channel;
use super::front::{Front, Terminal};
use super::image::Image;
use super::message::{Request, Start, ToLauncher, Via};
use super::respawn::{self, Role};
use super::secrets::{Asking, Keys};
use super::supervise::supervise;

/// A unit that could not be started: what the user is told.
pub type Failure = Box<Report>;

/// Starts a unit under a supervisor of its own and returns when its target can be used. What the
/// image is locked with is answered by `keys`.
///
/// # Errors
/// Why not; nothing is left behind.
pub fn start(
    request: &Request,
    image: &Image,
    keys: Arc<Keys>,
    terminal: &Terminal,
) -> Result<Started, Failure> {
    let boxed = |error: Error| Box::new(error.report());
    let (child, channel) = respawn::respawn(Role::Supervise, &request.id).map_err(boxed)?;
    // The supervisor outlives us; a child that ends early is seen by its channel.
    drop(child);
    // Whatever comes of it, the terminal is in order and the keys are wiped when this returns.
    let (_asking, asker) = Asking::start(keys).map_err(boxed)?;
    let (start, fds) = Start::new(request, image, &asker);
    channel.send(&start, &fds).map_err(boxed)?;
    drop(asker);
    loop {
        match channel.recv::<ToLauncher>().map_err(boxed)? {
            Some((ToLauncher::Progress { what, done, total }, _)) => {
                terminal.update(&what, done, total);
            }
            Some((ToLauncher::Pass(pass), _)) => terminal.begins(pass),
            Some((ToLauncher::Ready { via }, _)) => {
                terminal.finish();
                return Ok(Started { via, channel });
            }
            Some((ToLauncher::Failed(report), _)) => {
                terminal.clear();
                return Err(Box::new(report));
            }
            None => {
                terminal.clear();
                let error =
                    Error::new(Kind::Io, "the supervisor ended before the image was usable")
                        .hint("loopmount --list shows what is left, loopmount -u takes it away");
                return Err(boxed(error));
            }
        }
    }
}

/// A unit whose target can be used.
#[derive(Debug)]
pub struct Started {
    /// The means that was chosen.
    pub via: Via,
    /// While it is open, a private unit stays.
    pub channel: Channel,
}

/// The whole life of the supervisor process.
///
/// # Errors
/// When the unit could not be started; the launcher has been told.
pub fn supervisor_main() -> Result<()> {
    let channel = Arc::new(respawn::inherit()?);
    let Some((start, fds)) = channel.recv::<Start>()? else {
        return Ok(());
    };
    let (request, image, asker) = start.parts(fds)?;
    let front: Arc<dyn Front> = channel.clone();
    supervise(request, image, asker, &front, Some(&channel))
}
