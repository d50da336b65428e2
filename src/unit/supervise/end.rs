//! Taking down what is left, until the last user is gone.

use std::sync::mpsc;
use std::time::Duration;

use nbdfuse::mount::Mode;
use nbdserve::{Error, Result};

use super::{Ending, Event, Supervisor};
use crate::sys::process::wait_for_children;
use crate::target::kernel_nbd::{self, NbdDevice};
use crate::unit::events;
use crate::unit::message::{Show, ToServer, Via};
use crate::unit::record::{Stage, Undo};
use crate::unit::undo::{self, Kernel, Server};

/// The server has this long to end once it was told to and nothing uses it.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// What the server has started, and itself, have this long to end when it was killed. What they do
/// until then is undone only afterwards.
const HELPER_LIMIT: Duration = Duration::from_secs(2);
/// A device that others still use is waited for this long before it is left to its last user.
const LET_GO_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at what is still in use.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl Supervisor {
    /// Takes down what is left, waits for the last user, removes the folder.
    pub(super) fn finish(&mut self, ending: &Ending) {
        self.record.stage = Stage::Ending;
        if let Err(error) = self.save() {
            tracing::error!("{error}");
        }
        let server = match ending {
            Ending::Unmounted => {
                tracing::info!("unmounted");
                Server::Answers
            }
            Ending::Asked => {
                tracing::info!("asked to end");
                Server::Answers
            }
            Ending::Broken(how) => {
                tracing::error!("{how}; the mount is detached");
                self.kill_server();
                if !wait_for_children(HELPER_LIMIT) {
                    tracing::warn!("the server or a helper of it does not end");
                }
                Server::Dead
            }
        };
        self.undo_and_wait(server);
        self.wait_for_server();
        if let Err(error) = undo::remove_files(&self.dir, Some(&self.record)) {
            tracing::error!("{}", error.report());
        }
    }

    /// Detaches what is there, again and again until the last holder has let go; then the server
    /// has nothing left to do and ends.
    fn undo_and_wait(&mut self, server: Server) {
        let id = self.dir.id().to_owned();
        let (sender, finished) = mpsc::channel();
        // Our own descriptor would keep the device for ever.
        let hold = self.device.take().and_then(|device| device.hold);
        let work = move || {
            if let Some(device) = hold
                && let Err(error) = let_go(device, &id, server)
            {
                tracing::error!("{}", error.report());
            }
            loop {
                if let Err(stayed) = undo::undo_all(&id, Mode::Lazy, server) {
                    tracing::error!("{}", Error::from(stayed).report());
                }
                if Kernel::look().is_ok_and(|kernel| kernel.of(&id).is_empty()) {
                    let _ = sender.send(());
                    return;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        };
        if let Err(error) = events::watch("undo", work) {
            tracing::error!("{error}");
        }
        // With the server dead its mounts have no more answers; the devices vanish by themselves.
        let _ = finished.recv();
    }

    /// FUSE users that were there at a lazy unmount keep the server until they are done.
    fn wait_for_server(&mut self) {
        let fuse =
            matches!(self.record.via, Some(Via::Fuse)) || self.record.request.show == Show::File;
        let in_use = fuse && self.record.undo.contains(&Undo::FuseMount);
        if !in_use {
            let _ = self.tell(&ToServer::Stop, &[]);
        }
        while self.server_alive {
            let event = if in_use {
                self.next()
            } else {
                match self.events.wait_within(STOP_LIMIT) {
                    Some(event) => event,
                    None => {
                        tracing::error!("the server does not end, killing it");
                        self.kill_server();
                        continue;
                    }
                }
            };
            match event {
                Event::ServerGone(_) => self.server_alive = false,
                // A second request does not wait for users.
                Event::Signal => self.kill_server(),
                _ => {}
            }
        }
    }
}

/// Gives up our own hold of an NBD device whose mount is gone, or whose server is dead.
fn let_go(device: NbdDevice, id: &str, server: Server) -> Result<()> {
    match server {
        Server::Answers => device.disconnect(id, LET_GO_LIMIT).map(drop),
        Server::Dead => kernel_nbd::sever(device.index, id).map(drop),
    }
}
