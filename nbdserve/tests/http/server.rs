//! A web server in this process that does what a test tells it, and remembers what it was asked.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// 0 for the first one.
    pub(crate) number: usize,
    /// Path and query, or the whole URL when a proxy is asked.
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// First and last byte of `Range`, when it is one.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        match self.all_ranges().as_slice() {
            [range] => Some(*range),
            _ => None,
        }
    }

    /// First and last byte of each part of `Range`.
    pub(crate) fn all_ranges(&self) -> Vec<(usize, usize)> {
        let field = self.header("range").unwrap_or_default();
        let ranges = field.strip_prefix("bytes=").unwrap_or_default().split(',');
        let parse = |range: &str| {
            let (first, last) = range.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        ranges.filter_map(parse).collect()
    }
}

/// What happens while a body is sent.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Send(Bytes),
    /// The connection breaks.
    Break,
    /// Nothing more happens.
    Hang,
    Sleep(Duration),
    /// Waits until the number is above this.
    Above(Arc<AtomicU64>, u64),
}

/// An answer; `None` in place of one breaks the connection.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) steps: Vec<Step>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: vec![],
            steps: vec![],
        }
    }

    pub(crate) fn redirect(location: &str) -> Self {
        Self::status(302).with("location", location)
    }

    /// Sets a field, in place of one that is there.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self = self.without(name);
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(other, _)| other != name);
        self
    }

    /// A body, with its length in the head.
    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.steps = vec![Step::Send(Bytes::copy_from_slice(body))];
        self.with("content-length", &body.len().to_string())
    }

    /// After `len` bytes of the body `step` happens, and nothing more is sent.
    pub(crate) fn cut(mut self, len: usize, step: Step) -> Self {
        let mut left = len;
        let mut steps = Vec::new();
        for old in self.steps {
            if let Step::Send(bytes) = old {
                let part = bytes.slice(..left.min(bytes.len()));
                left -= part.len();
                steps.push(Step::Send(part));
            }
        }
        // What was sent goes out before that: hyper flushes when a body has to be waited for.
        steps.extend([Step::Sleep(Duration::from_millis(1)), step]);
        self.steps = steps;
        self
    }
}

const BOUNDARY: &str = "00000000000000000017";

/// A file on the server.
#[derive(Clone, Debug)]
pub(crate) struct File {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) etag: Option<String>,
    pub(crate) date: Option<String>,
}

impl File {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: Arc::new(bytes),
            etag: Some("\"v1\"".to_owned()),
            date: Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
        }
    }

    /// The answer of a server that does everything right.
    pub(crate) fn serve(&self, asked: &Asked) -> Reply {
        for (name, ours) in [
            ("if-match", &self.etag),
            ("if-unmodified-since", &self.date),
        ] {
            if asked
                .header(name)
                .is_some_and(|theirs| Some(theirs) != ours.as_deref())
            {
                return Reply::status(412);
            }
        }
        self.ranges(asked)
    }

    /// The answer of a server that knows ranges and no preconditions.
    pub(crate) fn ranges(&self, asked: &Asked) -> Reply {
        let size = self.bytes.len();
        let ranges = asked.all_ranges();
        let reply = match asked.range() {
            None if ranges.len() > 1 => return self.parts(&ranges),
            None => Reply::status(200).body(&self.bytes),
            Some((first, _)) if first >= size => {
                Reply::status(416).with("content-range", &format!("bytes */{size}"))
            }
            Some((first, last)) => {
                let last = last.min(size - 1);
                Reply::status(206)
                    .body(&self.bytes[first..=last])
                    .with("content-range", &format!("bytes {first}-{last}/{size}"))
            }
        };
        self.validated(reply)
    }

    /// These parts, first and last byte each, as nginx sends them.
    pub(crate) fn parts(&self, ranges: &[(usize, usize)]) -> Reply {
        let size = self.bytes.len();
        let mut body = Vec::new();
        for (first, last) in ranges {
            let last = (*last).min(size - 1);
            let head = format!(
                "\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\n\
                 Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
            );
            body.extend(head.bytes());
            body.extend(&self.bytes[*first..=last]);
        }
        body.extend(format!("\r\n--{BOUNDARY}--\r\n").bytes());
        let media_type = format!("multipart/byteranges; boundary={BOUNDARY}");
        let reply = Reply::status(206).body(&body);
        self.validated(reply.with("content-type", &media_type))
    }

    /// The answer of a server that knows no ranges.
    pub(crate) fn whole(&self) -> Reply {
        self.validated(Reply::status(200).body(&self.bytes))
    }

    fn validated(&self, mut reply: Reply) -> Reply {
        if let Some(etag) = &self.etag {
            reply = reply.with("etag", etag);
        }
        if let Some(date) = &self.date {
            reply = reply.with("last-modified", date);
        }
        reply
    }
}

type Handler = dyn Fn(&Asked) -> Option<Reply> + Send + Sync;

/// A running server; it ends when dropped, with all connections.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    seen: Arc<Seen>,
    _runtime: Runtime,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Asked>>,
    connections: AtomicUsize,
}

impl Server {
    /// A server that answers as `handler` says.
    pub(crate) fn start(handler: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", None, handler)
    }

    /// A server of one file, that does everything right.
    pub(crate) fn of(file: &File) -> Self {
        let file = file.clone();
        Self::start(move |asked| Some(file.serve(asked)))
    }

    /// As [`Self::start`], at a given address and with TLS.
    pub(crate) fn start_at(
        address: &str,
        tls: Option<TlsAcceptor>,
        handler: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let address = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let seen = Arc::new(Seen::default());
        runtime.spawn(accept(listener, tls, Arc::clone(&seen), Arc::new(handler)));
        Self {
            address,
            scheme,
            seen,
            _runtime: runtime,
        }
    }

    /// The URL of `path`, which starts with a slash.
    pub(crate) fn url(&self, path: &str) -> String {
        let host = match self.scheme {
            "https" => "localhost".to_owned(),
            _ => self.address.ip().to_string(),
        };
        format!("{}://{host}:{}{path}", self.scheme, self.address.port())
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// The ranges that were asked for so far.
    pub(crate) fn ranges(&self) -> Vec<(usize, usize)> {
        self.asked().iter().filter_map(Asked::range).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    seen: Arc<Seen>,
    handler: Arc<Handler>,
) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        stream.set_nodelay(true).unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let (seen, handler, tls) = (Arc::clone(&seen), Arc::clone(&handler), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => connection(stream, false, seen, handler).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        connection(stream, http2, seen, handler).await;
                    }
                }
            }
        });
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    http2: bool,
    seen: Arc<Seen>,
    handler: Arc<Handler>,
) {
    let service = service_fn(move |request| {
        let reply = answer(&request, &seen, &*handler);
        async move { reply.ok_or_else(|| std::io::Error::other("told to break off")) }
    });
    // It ends with an error whenever a test breaks it.
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder
            .serve_connection(TokioIo::new(stream), service)
            .await;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.timer(TokioTimer::new());
        let _ = builder
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

fn answer(request: &Request<Incoming>, seen: &Seen, handler: &Handler) -> Option<Response<Steps>> {
    let asked = {
        let mut requests = seen.requests.lock().unwrap();
        let asked = Asked {
            number: requests.len(),
            target: request.uri().to_string(),
            headers: request.headers().clone(),
        };
        requests.push(asked.clone());
        asked
    };
    let reply = handler(&asked)?;
    let steps = Steps {
        left: reply.steps.into(),
        sleep: None,
    };
    let mut response = Response::new(steps);
    *response.status_mut() = reply.status.try_into().unwrap();
    for (name, value) in reply.headers {
        let name = hyper::header::HeaderName::try_from(name).unwrap();
        response
            .headers_mut()
            .append(name, HeaderValue::try_from(value).unwrap());
    }
    Some(response)
}

/// A body that is sent step by step.
struct Steps {
    left: VecDeque<Step>,
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl hyper::body::Body for Steps {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.sleep = None;
            }
            match self.left.pop_front() {
                None => return Poll::Ready(None),
                Some(Step::Send(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Step::Break) => {
                    return Poll::Ready(Some(Err(std::io::Error::other("told to break off"))));
                }
                Some(Step::Sleep(time)) => self.sleep = Some(Box::pin(tokio::time::sleep(time))),
                Some(Step::Above(number, least)) => {
                    if number.load(Ordering::SeqCst) <= least {
                        self.left.push_front(Step::Above(number, least));
                        let pause = Duration::from_millis(2);
                        self.sleep = Some(Box::pin(tokio::time::sleep(pause)));
                    }
                }
                Some(Step::Hang) => {
                    self.left.push_front(Step::Hang);
                    return Poll::Pending;
                }
            }
        }
    }
}
