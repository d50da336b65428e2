//! What an NBD client may send.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::Kind;
use crate::proto::{Header, Request, Rules, SimpleReply, TransmissionFlags};
use crate::server::{Options, Server};
use crate::source::Memory;

/// Bytes of the export.
const SIZE: u64 = 64 << 10;

/// Requests one after the other, held against exports of all sorts: the first four bytes say what
/// it offers.
pub(super) fn request(data: &[u8]) {
    let Some((flags, requests)) = data.split_first_chunk::<4>() else {
        return;
    };
    let [low, high, block, payload] = *flags;
    let rules = Rules {
        size: SIZE,
        flags: TransmissionFlags(u16::from_le_bytes([low, high])),
        max_payload: 1 << (payload % 26),
        min_block: 1 << (block % 17),
    };
    for bytes in requests.as_chunks::<{ Header::LEN }>().0 {
        match Header::decode(bytes) {
            Ok(header) => {
                assert_eq!(&header.encode(), bytes);
                check(&header, &rules);
            }
            Err(error) => assert_eq!(error.kind(), Kind::Corrupt),
        }
        // Any bytes are a reply or are refused.
        if let Some(bytes) = bytes.first_chunk::<{ SimpleReply::LEN }>() {
            let _ = SimpleReply::decode(bytes);
        }
    }
}

fn check(header: &Header, rules: &Rules) {
    let Ok(request) = header.check(rules) else {
        return;
    };
    let (range, is_write) = match request {
        Request::Disconnect | Request::Flush => return,
        Request::Read { range } | Request::Cache { range } => (range, false),
        Request::Write { range, .. }
        | Request::Trim { range, .. }
        | Request::WriteZeroes { range, .. } => (range, true),
    };
    assert!(range.end() <= rules.size, "{header:?}");
    let read_only = rules.flags.contains(TransmissionFlags::READ_ONLY);
    assert!(!(is_write && read_only), "{header:?}");
}

/// All that a client ever sends, to a server over real memory. It must come to an end by itself.
pub(super) fn connection(data: &[u8]) {
    let server = Server::new(Memory::volume(vec![0; SIZE as usize]), &Options::default());
    let Ok((ours, theirs)) = UnixStream::pair() else {
        return;
    };
    std::thread::scope(|scope| {
        let served = scope.spawn(|| server.serve(theirs));
        let mut client = &ours;
        // Replies are read beside, or both sides would wait with full buffers.
        let reader = scope.spawn(|| {
            let mut replies = Vec::new();
            let _ = (&ours).read_to_end(&mut replies);
        });
        // The server may hang up at any byte.
        let _ = client.write_all(data);
        let _ = ours.shutdown(Shutdown::Write);
        // A panic of the server's thread is ours.
        match served.join() {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => assert!(
                matches!(error.kind(), Kind::Corrupt | Kind::Io),
                "{error:?}"
            ),
            Err(panic) => std::panic::resume_unwind(panic),
        }
        let _ = ours.shutdown(Shutdown::Both);
        let _ = reader.join();
    });
}
