//! The NBD server against a model, and against clients that send anything.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nbdserve::proto::{Command, CommandFlags, Header, SimpleReply};
use nbdserve::server::{Options, Server};
use nbdserve::source::Memory;
use proptest::prelude::*;

const SIZE: usize = 64 << 10;

/// Runs `client` on one end of a socket pair, the server on the other, and gives what the client
/// made. The server must end by itself once the client is gone.
fn with_server<T>(server: &Server, client: impl FnOnce(&mut UnixStream) -> T) -> T {
    let (mut ours, theirs) = UnixStream::pair().expect("make a socket pair");
    // A client that waits for an answer that never comes fails instead of hanging.
    ours.set_read_timeout(Some(Duration::from_secs(30)))
        .expect("set a timeout");
    std::thread::scope(|scope| {
        // How the connection ends is up to what the client has sent.
        scope.spawn(|| drop(server.serve(theirs)));
        let made = client(&mut ours);
        drop(ours);
        made
    })
}

/// One request of a client that keeps to the framing and to nothing else.
#[derive(Clone, Debug)]
struct Step {
    command: u16,
    flags: u16,
    offset: u64,
    length: u32,
    fill: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let end = SIZE as u64;
    let offset = prop_oneof![
        8 => 0..end,
        1 => end - 2..end + 2,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![8 => 0_u32..20_000, 1 => 0_u32..3, 1 => 60_000_u32..70_000];
    let command = prop_oneof![8 => 0_u16..=7, 1 => any::<u16>()];
    let flags = prop_oneof![6 => Just(0_u16), 2 => Just(1_u16), 2 => any::<u16>()];
    (command, flags, offset, length, any::<u8>()).prop_map(
        |(command, flags, offset, length, fill)| Step {
            // DISC would end the conversation.
            command: if command == 2 { 0 } else { command },
            flags,
            offset,
            length,
            fill,
        },
    )
}

/// Sends one request and gives the error and the data of the answer.
fn ask(socket: &mut UnixStream, step: &Step, cookie: u64) -> (u32, Vec<u8>) {
    let header = Header {
        flags: CommandFlags(step.flags),
        command: step.command,
        cookie,
        offset: step.offset,
        length: step.length,
    };
    socket.write_all(&header.encode()).expect("send a request");
    let payload = vec![step.fill; header.payload_len() as usize];
    socket.write_all(&payload).expect("send a payload");
    let mut bytes = [0; SimpleReply::LEN];
    socket.read_exact(&mut bytes).expect("an answer");
    let (answered, error) = SimpleReply::decode(&bytes).expect("a simple reply");
    assert_eq!(answered, cookie);
    let reads = error == 0 && step.command == Command::Read.to_wire();
    let mut data = vec![0; if reads { step.length as usize } else { 0 }];
    socket.read_exact(&mut data).expect("the data");
    (error, data)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_requests_leave_the_bytes_that_the_model_has(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let volume = Memory::volume(vec![0; SIZE]);
        let server = Server::new(volume.clone(), &Options::default());
        let mut model = vec![0; SIZE];
        with_server(&server, |socket| {
            for (cookie, step) in steps.iter().enumerate() {
                let (error, data) = ask(socket, step, cookie as u64);
                let end = step.offset.checked_add(step.length.into());
                let inside = end.is_some_and(|end| end <= SIZE as u64);
                prop_assert!(inside || error != 0 || step.command == 3, "{step:?}");
                if error != 0 {
                    continue;
                }
                let from = step.offset as usize;
                match step.command {
                    0 => prop_assert_eq!(&data, &model[from..from + step.length as usize]),
                    1 => model[from..from + step.length as usize].fill(step.fill),
                    6 => model[from..from + step.length as usize].fill(0),
                    // FLUSH, CACHE; Memory forgets nothing that is trimmed.
                    3..=5 => {}
                    other => prop_assert!(false, "command {other} succeeded"),
                }
            }
            Ok(())
        })?;
        prop_assert_eq!(volume.read_vec(0, SIZE).expect("read"), model);
    }

    #[test]
    fn any_bytes_end_the_connection_and_nothing_else(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        good_start: bool,
    ) {
        let server = Server::new(Memory::volume(vec![7; SIZE]), &Options::default());
        with_server(&server, |socket| {
            if good_start {
                let header = Header {
                    flags: CommandFlags::NONE,
                    command: Command::Cache.to_wire(),
                    cookie: 1,
                    offset: 0,
                    length: 512,
                };
                let _ = socket.write_all(&header.encode());
            }
            // The server may hang up in the middle.
            let _ = socket.write_all(&bytes);
        });
        // Others are served as before.
        let read = Step { command: 0, flags: 0, offset: 0, length: 512, fill: 0 };
        let (error, data) = with_server(&server, |socket| ask(socket, &read, 9));
        prop_assert_eq!((error, data), (0, vec![7; 512]));
    }
}
