//! Archives made byte by byte.

/// A header.
#[derive(Clone, Debug)]
pub(crate) struct Header(pub(crate) Vec<u8>);

impl Header {
    /// A ustar header.
    pub(crate) fn new(kind: u8, name: &str, size: u64) -> Self {
        let mut header = Self(vec![0; 512]);
        header.put(0, name.as_bytes());
        for at in [100, 108, 116] {
            header.put(at, b"0000644\0");
        }
        header.size(size);
        header.put(136, b"00000000000\0");
        header.put(156, &[kind]);
        header.put(257, b"ustar\x0000");
        header
    }

    /// With GNU's magic.
    pub(crate) fn gnu(kind: u8, name: &str, size: u64) -> Self {
        let mut header = Self::new(kind, name, size);
        header.put(257, b"ustar  \0");
        header
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(crate) fn link(&mut self, name: &str) -> &mut Self {
        self.put(157, name.as_bytes())
    }

    /// In octal digits, or as a binary number.
    pub(crate) fn size(&mut self, size: u64) -> &mut Self {
        let field = number(size);
        self.put(124, &field)
    }

    /// With its checksum.
    pub(crate) fn done(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        mend(&mut bytes);
        bytes
    }
}

/// A field of 12 bytes.
pub(crate) fn number(value: u64) -> Vec<u8> {
    if value < 1 << 33 {
        return format!("{value:011o}\0").into_bytes();
    }
    let mut field = vec![0x80, 0, 0, 0];
    field.extend(value.to_be_bytes());
    field
}

/// Makes the checksum of the header at the start of `bytes` right.
pub(crate) fn mend(bytes: &mut [u8]) {
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes[..512].iter().map(|byte| u64::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// What is in an archive, filled up to whole blocks.
pub(crate) fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A file.
pub(crate) fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    let header = Header::new(b'0', name, bytes.len() as u64).done();
    [header, padded(bytes)].concat()
}

/// A header of type `kind` with a text behind it.
pub(crate) fn extra(kind: u8, text: &[u8]) -> Vec<u8> {
    let header = Header::new(kind, "extra", text.len() as u64).done();
    [header, padded(text)].concat()
}

/// Records of an extended header.
pub(crate) fn records(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = Vec::new();
    for (keyword, value) in records {
        let rest = format!(" {keyword}={value}\n");
        let mut len = rest.len();
        while len != rest.len() + len.to_string().len() {
            len = rest.len() + len.to_string().len();
        }
        text.extend(format!("{len}{rest}").bytes());
    }
    text
}

pub(crate) fn pax(all: &[(&str, &str)]) -> Vec<u8> {
    extra(b'x', &records(all))
}

/// The end of an archive.
pub(crate) fn end() -> Vec<u8> {
    vec![0; 1024]
}
