//! The server against a client of a few lines that can misbehave.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::*;
use crate::proto::{Command, CommandFlags, Errno, Header, SimpleReply};
use crate::source::Memory;
use crate::{Device, Error, Geometry, Kind, WriteFeatures, Writer};

/// A client: sends what it is told, decodes what it gets.
struct Client(UnixStream);

impl Client {
    fn send(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        let header = Header {
            flags: CommandFlags::NONE,
            command,
            cookie,
            offset,
            length,
        };
        self.0.write_all(&header.encode()).unwrap();
    }

    fn read(&mut self, cookie: u64, offset: u64, length: u32) {
        self.send(Command::Read.to_wire(), cookie, offset, length);
    }

    fn write(&mut self, cookie: u64, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        self.send(Command::Write.to_wire(), cookie, offset, length);
        self.0.write_all(data).unwrap();
    }

    fn reply(&mut self) -> (u64, u32) {
        let mut bytes = [0; SimpleReply::LEN];
        self.0.read_exact(&mut bytes).unwrap();
        SimpleReply::decode(&bytes).unwrap()
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.0.read_exact(&mut data).unwrap();
        data
    }

    fn disconnect(mut self) {
        self.send(Command::Disconnect.to_wire(), 0, 0, 0);
    }
}

/// Runs `client` against a server for `volume`, and gives what `serve` returned.
fn with_server(
    volume: Volume,
    options: &Options,
    client: impl FnOnce(Client, &Server),
) -> crate::Result<End> {
    let server = Server::new(volume, options);
    let (ours, theirs) = UnixStream::pair().unwrap();
    // A client that waits for an answer that never comes fails instead of hanging.
    ours.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| server.serve(theirs));
        client(Client(ours), &server);
        serving.join().unwrap()
    })
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

#[test]
fn what_was_written_is_read_and_disc_ends_the_connection() {
    let end = with_server(
        Memory::volume(vec![0; 1 << 20]),
        &Options::default(),
        |mut client, _| {
            client.write(1, 4096, &pattern(3000));
            assert_eq!(client.reply(), (1, 0));
            client.read(2, 4095, 3002);
            assert_eq!(client.reply(), (2, 0));
            assert_eq!(
                client.data(3002),
                [vec![0], pattern(3000), vec![0]].concat()
            );
            client.send(Command::Flush.to_wire(), 3, 0, 0);
            assert_eq!(client.reply(), (3, 0));
            client.send(Command::WriteZeroes.to_wire(), 4, 4096, 3000);
            assert_eq!(client.reply(), (4, 0));
            client.read(5, 4096, 3000);
            assert_eq!(client.reply(), (5, 0));
            assert_eq!(client.data(3000), vec![0; 3000]);
            client.disconnect();
        },
    );
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn the_payload_of_a_refused_write_is_consumed() {
    let options = Options {
        read_only: true,
        ..Options::default()
    };
    let volume = Memory::volume(pattern(8192));
    let end = with_server(volume.clone(), &options, |mut client, _| {
        client.write(1, 0, &vec![9; 200_000]);
        assert_eq!(client.reply().0, 1);
        client.write(2, 0, &[9; 512]);
        assert_eq!(client.reply(), (2, Errno::Perm.to_wire()));
        client.read(3, 0, 512);
        assert_eq!(client.reply(), (3, 0));
        assert_eq!(client.data(512), pattern(512));
        client.disconnect();
    });
    assert_eq!(end.unwrap(), End::Disconnected);
    assert_eq!(volume.read_vec(0, 8192).unwrap(), pattern(8192));
}

#[test]
fn an_oversized_write_is_drained_and_an_unknown_command_answered() {
    let mut options = Options::default();
    options.limits.max_payload = 4096;
    let end = with_server(
        Memory::volume(vec![0; 1 << 20]),
        &options,
        |mut client, _| {
            client.write(1, 0, &vec![1; 100_000]);
            assert_eq!(client.reply(), (1, Errno::Overflow.to_wire()));
            client.read(2, 0, 4097);
            assert_eq!(client.reply(), (2, Errno::Overflow.to_wire()));
            client.send(4711, 3, 0, 512);
            assert_eq!(client.reply(), (3, Errno::Inval.to_wire()));
            client.read(4, 0, 0);
            assert_eq!(client.reply(), (4, 0));
            client.disconnect();
        },
    );
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn a_wrong_magic_ends_the_connection_as_corrupt() {
    let end = with_server(
        Memory::volume(vec![0; 512]),
        &Options::default(),
        |mut client, _| {
            client
                .0
                .write_all(b"GET / HTTP/1.1\r\nHost: example\r\n")
                .unwrap();
            // Hung up on, without an answer.
            assert_eq!(client.0.read(&mut [0; 1]).unwrap_or(0), 0);
        },
    );
    assert_eq!(end.unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn the_client_may_vanish_after_any_byte() {
    let write = Header {
        flags: CommandFlags::NONE,
        command: Command::Write.to_wire(),
        cookie: 1,
        offset: 0,
        length: 100,
    };
    let message = [write.encode().to_vec(), vec![5; 100]].concat();
    for cut in 0..message.len() {
        let volume = Memory::volume(vec![0; 512]);
        let end = with_server(volume.clone(), &Options::default(), |mut client, _| {
            client.0.write_all(&message[..cut]).unwrap();
        });
        assert_eq!(end.unwrap(), End::Closed, "cut at {cut}");
        assert_eq!(volume.read_vec(0, 512).unwrap(), vec![0; 512]);
    }
}

/// Reads at offset 0 wait until `open` is set; all others are answered at once. Counts what it
/// does.
#[derive(Debug, Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
    inside: AtomicUsize,
    flushes: AtomicUsize,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn wait_for_inside(&self, count: usize) {
        while self.inside.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }
}

#[derive(Debug)]
struct Gated(Arc<Gate>);

impl Device for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn geometry(&self) -> Geometry {
        Geometry::bytes(1 << 30)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> crate::Result<()> {
        self.0.inside.fetch_add(1, Ordering::SeqCst);
        if offset == 0 {
            let mut open = self.0.open.lock().unwrap();
            while !*open {
                open = self.0.opened.wait(open).unwrap();
            }
        }
        assert_ne!(offset, 666, "a bug in a layer");
        if offset == 777 {
            return Err(Error::new(Kind::Corrupt, "check mismatch"));
        }
        buf.fill(1);
        Ok(())
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl Writer for Gated {
    fn features(&self) -> WriteFeatures {
        WriteFeatures::default()
    }

    fn write_at(&self, _buf: &[u8], _offset: u64, _fua: bool) -> crate::Result<()> {
        Ok(())
    }

    fn flush(&self) -> crate::Result<()> {
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_slow_request_holds_up_nobody() {
    let gate = Arc::new(Gate::default());
    let volume = Volume::new(Gated(Arc::clone(&gate)));
    let end = with_server(volume, &Options::default(), |mut client, _| {
        for cookie in 0..8 {
            client.read(cookie, 0, 512);
        }
        client.read(100, 4096, 512);
        assert_eq!(client.reply(), (100, 0), "answered before the earlier ones");
        client.data(512);
        gate.wait_for_inside(9);
        gate.open();
        let mut cookies: Vec<u64> = (0..8)
            .map(|_| {
                let (cookie, error) = client.reply();
                assert_eq!(error, 0);
                client.data(512);
                cookie
            })
            .collect();
        cookies.sort_unstable();
        assert_eq!(cookies, (0..8).collect::<Vec<_>>());
        client.disconnect();
    });
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn no_more_requests_are_carried_out_at_a_time_than_there_are_workers() {
    let gate = Arc::new(Gate::default());
    let mut options = Options::default();
    options.limits.workers = 3;
    let volume = Volume::new(Gated(Arc::clone(&gate)));
    let end = with_server(volume, &options, |mut client, _| {
        for cookie in 0..20 {
            client.read(cookie, 0, 512);
        }
        gate.wait_for_inside(3);
        assert_eq!(gate.inside.load(Ordering::SeqCst), 3);
        gate.open();
        for _ in 0..20 {
            assert_eq!(client.reply().1, 0);
            client.data(512);
        }
        client.disconnect();
    });
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn bytes_in_flight_are_bounded() {
    let gate = Arc::new(Gate::default());
    let mut options = Options::default();
    options.limits.bytes_in_flight = 2 * 4096 + 100;
    let volume = Volume::new(Gated(Arc::clone(&gate)));
    let end = with_server(volume, &options, |mut client, _| {
        for cookie in 0..20 {
            client.read(cookie, 0, 4096);
        }
        gate.wait_for_inside(2);
        assert_eq!(gate.inside.load(Ordering::SeqCst), 2);
        gate.open();
        for _ in 0..20 {
            assert_eq!(client.reply().1, 0);
            client.data(4096);
        }
        client.disconnect();
    });
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn disc_waits_for_what_was_asked_before() {
    let gate = Arc::new(Gate::default());
    let volume = Volume::new(Gated(Arc::clone(&gate)));
    let end = with_server(volume, &Options::default(), |mut client, _| {
        client.read(1, 0, 512);
        client.send(Command::Disconnect.to_wire(), 2, 0, 0);
        gate.wait_for_inside(1);
        gate.open();
        assert_eq!(client.reply(), (1, 0));
        client.data(512);
        assert_eq!(client.0.read(&mut [0; 1]).unwrap(), 0, "closed, no reply");
    });
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn an_error_and_a_panic_below_are_answered_with_eio() {
    let volume = Volume::new(Gated(Arc::new(Gate::default())));
    let end = with_server(volume, &Options::default(), |mut client, _| {
        client.read(1, 777, 512);
        assert_eq!(client.reply(), (1, Errno::Io.to_wire()));
        client.read(2, 666, 512);
        assert_eq!(client.reply(), (2, Errno::Io.to_wire()));
        client.read(3, 512, 512);
        assert_eq!(client.reply(), (3, 0));
        client.data(512);
        client.disconnect();
    });
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn fua_is_durable_where_the_device_can_only_flush() {
    let gate = Arc::new(Gate::default());
    let volume = Volume::new(Gated(Arc::clone(&gate)));
    let end = with_server(volume, &Options::default(), |mut client, _| {
        let header = Header {
            flags: CommandFlags::FUA,
            command: Command::Write.to_wire(),
            cookie: 1,
            offset: 0,
            length: 512,
        };
        client.0.write_all(&header.encode()).unwrap();
        client.0.write_all(&[0; 512]).unwrap();
        assert_eq!(client.reply(), (1, 0));
        assert_eq!(gate.flushes.load(Ordering::SeqCst), 1);
        client.disconnect();
    });
    assert_eq!(end.unwrap(), End::Disconnected);
}

#[test]
fn stop_answers_what_runs_refuses_the_rest_and_closes() {
    let gate = Arc::new(Gate::default());
    let volume = Volume::new(Gated(Arc::clone(&gate)));
    let end = with_server(volume, &Options::default(), |mut client, server| {
        client.read(1, 0, 512);
        gate.wait_for_inside(1);
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| server.stop(Duration::from_secs(30)));
            while !server.is_stopping() {
                std::thread::yield_now();
            }
            client.read(2, 4096, 512);
            assert_eq!(client.reply(), (2, Errno::Shutdown.to_wire()));
            gate.open();
            assert_eq!(client.reply(), (1, 0));
            client.data(512);
            assert!(stopping.join().unwrap());
        });
        assert_eq!(client.0.read(&mut [0; 1]).unwrap(), 0);
    });
    assert_eq!(end.unwrap(), End::Stopped);
}

#[test]
fn stop_gives_up_on_a_request_that_hangs() {
    let gate = Arc::new(Gate::default());
    let volume = Volume::new(Gated(Arc::clone(&gate)));
    let end = with_server(volume, &Options::default(), |mut client, server| {
        client.read(1, 0, 512);
        gate.wait_for_inside(1);
        assert!(!server.stop(Duration::from_millis(10)));
        gate.open();
    });
    assert_eq!(end.unwrap(), End::Stopped);
}

#[test]
fn a_client_that_takes_no_answer_is_dropped() {
    let mut options = Options::default();
    options.limits.no_progress = Duration::from_millis(50);
    let server = Server::new(Memory::volume(vec![0; 8 << 20]), &options);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut client = Client(ours);
    // The answer does not fit the socket's buffer, and nobody reads it.
    client.read(1, 0, 8 << 20);
    assert_eq!(server.serve(theirs).unwrap(), End::Closed);
    let mut got = Vec::new();
    client.0.read_to_end(&mut got).unwrap();
    assert!(got.len() < 8 << 20, "{} bytes", got.len());
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_request_is_timed_out() {
    let mut options = Options::default();
    options.limits.no_progress = Duration::from_millis(50);
    let server = Server::new(Memory::volume(vec![0; 512]), &options);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&[0x25, 0x60]).unwrap();
    assert_eq!(server.serve(theirs).unwrap_err().kind(), Kind::TimedOut);
}

#[test]
fn several_connections_see_each_others_writes() {
    let server = Server::new(Memory::volume(vec![0; 65536]), &Options::default());
    assert!(server.flags().contains(TransmissionFlags::CAN_MULTI_CONN));
    std::thread::scope(|scope| {
        let mut clients: Vec<Client> = (0..4)
            .map(|_| {
                let (ours, theirs) = UnixStream::pair().unwrap();
                scope.spawn(|| server.serve(theirs));
                Client(ours)
            })
            .collect();
        for (i, client) in clients.iter_mut().enumerate() {
            client.write(1, i as u64 * 512, &[i as u8 + 1; 512]);
            assert_eq!(client.reply(), (1, 0));
        }
        for client in &mut clients {
            for i in 0..4 {
                client.read(2, i * 512, 512);
                assert_eq!(client.reply(), (2, 0));
                assert_eq!(client.data(512), vec![i as u8 + 1; 512]);
            }
        }
        for client in clients {
            client.disconnect();
        }
    });
}

#[test]
fn flags_say_only_what_is_honoured() {
    let volume = Memory::volume(vec![0; 512]);
    let read_only = flags_for(&volume, true);
    assert!(read_only.contains(TransmissionFlags::READ_ONLY));
    assert!(!read_only.contains(TransmissionFlags::SEND_FLUSH));
    let writable = flags_for(&volume, false);
    assert!(writable.contains(TransmissionFlags::SEND_FUA));
    assert!(!writable.contains(TransmissionFlags::READ_ONLY));
    // Memory has neither.
    assert!(!writable.contains(TransmissionFlags::SEND_TRIM));
    assert!(!writable.contains(TransmissionFlags::SEND_FAST_ZERO));
}
