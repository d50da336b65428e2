//! What clients and servers send.

#[test]
fn http_multipart() {
    // As nginx, Apache and a plain script write it; one without its end; the field itself.
    let seeds: [&[u8]; 5] = [
        b"\r\n--xyz\r\nContent-Type: application/octet-stream\r\n\
          Content-Range: bytes 0-4/100\r\n\r\nabcde\r\n--xyz\r\n\
          Content-Type: application/octet-stream\r\nContent-Range: bytes 90-99/100\r\n\r\n\
          \r\n--xyz--\r\r\n--xyz--\r\n",
        b"\r\n--xyz\r\nContent-range: bytes 7-7/18446744073709551615\r\n\r\n\n\r\n\
          --xyz\r\nContent-range: bytes 0-0/*\r\n\r\n-\r\n--xyz--\r\n",
        b"preamble\n--xyz\nContent-Range: bytes 1-2/3\nX: y\n\nab\n--xyz-- \nepilogue",
        b"--xyz\r\nContent-Range: bytes 5-18446744073709551614/18446744073709551615\r\n\r\nabc",
        b" charset=\"a;b\" ; boundary=\"a b\\\"c\"",
    ];
    fuzz!("http_multipart", || seeds.map(<[u8]>::to_vec).to_vec());
}

/// Requests as a client sends them: READ, WRITE with its payload, FLUSH, WRITE_ZEROES, DISC.
fn conversation() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (command, offset, length) in [
        (0, 512, 4096),
        (1, 8, 16),
        (3, 0, 0),
        (6, 0, 512),
        (2, 0, 0),
    ] {
        let header = nbdserve::proto::Header {
            flags: nbdserve::proto::CommandFlags::NONE,
            command,
            cookie: 7,
            offset,
            length,
        };
        bytes.extend(header.encode());
        bytes.resize(bytes.len() + header.payload_len() as usize, 1);
    }
    bytes
}

#[test]
fn nbd_request() {
    let flags = [[0xff, 0xff, 9, 25], [3, 0, 0, 9], [0x65, 0, 12, 16]];
    fuzz!("nbd_request", || {
        flags
            .map(|flags| [&flags[..], &conversation()].concat())
            .to_vec()
    });
}

#[test]
fn nbd_connection() {
    fuzz!("nbd_connection", || {
        let twice = [conversation(), conversation()].concat();
        vec![conversation(), twice, vec![0; 100]]
    });
}
