//! TLS with a private authority, HTTP/2, and what depends on the environment.

use std::process::Command;
use std::sync::Arc;

use nbdserve::source::{Http, HttpOptions};
use nbdserve::testing::{conformance, noise};
use nbdserve::{ByteRange, Cx, Device, Kind, Volume};
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::server::{File, Reply, Server};
use crate::{assert_says, options, read};

/// A certificate for `localhost`, what a server needs to show it, and the authority's own as PEM.
fn authority(protocols: &[&str]) -> (TlsAcceptor, NamedTempFile) {
    let mut params = rcgen::CertificateParams::new([]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertifiedIssuer::self_signed(params, key).unwrap();
    let pem = NamedTempFile::new().unwrap();
    std::fs::write(pem.path(), ca.pem()).unwrap();

    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &ca).unwrap();
    let private = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    (TlsAcceptor::from(Arc::new(config)), pem)
}

fn serve(file: &File, tls: TlsAcceptor) -> Server {
    let file = file.clone();
    Server::start_at("127.0.0.1:0", Some(tls), move |asked| {
        Some(file.serve(asked))
    })
}

fn trusting(pem: &NamedTempFile) -> HttpOptions {
    HttpOptions {
        ca: Some(pem.path().to_owned()),
        ..options()
    }
}

#[test]
fn it_keeps_the_contract_over_tls_and_http_2() {
    for (protocols, connections) in [(&["h2", "http/1.1"][..], 1), (&["http/1.1"][..], 6)] {
        let file = File::new(noise(3_000_000, 1));
        let (tls, pem) = authority(protocols);
        let server = serve(&file, tls);
        let open = || Http::open(&server.url("/disk"), &trusting(&pem), &Cx::new(0)).unwrap();
        assert!(read(&open(), 0, 3_000_000) == file.bytes[..]);
        assert!(
            server.connections() <= connections,
            "{}",
            server.connections()
        );
        let http = open();
        let pages = [1_000_000, 2_000_000, 2_500_000];
        http.will_need_parts(&pages.map(|at| ByteRange::between(at, at + 100)));
        for at in pages {
            let at = at as usize;
            assert!(read(&http, at, 100) == file.bytes[at..at + 100]);
        }
        assert_eq!(http.stats().requests, 2);
        conformance::check(|| (Volume::new(open()), file.bytes.to_vec()));
    }
}

#[test]
fn a_certificate_of_an_unknown_authority_is_told_at_once() {
    let (tls, _) = authority(&["http/1.1"]);
    let (_, other) = authority(&[]);
    let server = serve(&File::new(noise(10, 1)), tls);
    for options in [options(), trusting(&other)] {
        let error = Http::open(&server.url("/disk"), &options, &Cx::new(0)).unwrap_err();
        assert_eq!(error.kind(), Kind::Io);
        let place = format!("certificate of localhost:{}", server.address.port());
        assert_says(&error, &[&place, "invalid peer certificate", "--ca"]);
    }
    assert!(server.asked().is_empty());
}

#[test]
fn a_certificate_for_another_name_is_told_at_once() {
    let (tls, pem) = authority(&["http/1.1"]);
    let server = serve(&File::new(noise(10, 1)), tls);
    let url = server.url("/disk").replace("localhost", "127.0.0.1");
    let error = Http::open(&url, &trusting(&pem), &Cx::new(0)).unwrap_err();
    assert_says(&error, &["certificate of 127.0.0.1", "not valid for name"]);
}

#[test]
fn https_to_a_server_without_tls_is_told_at_once() {
    let server = Server::of(&File::new(noise(10, 1)));
    let url = server.url("/disk").replace("http://", "https://");
    let error = Http::open(&url, &options(), &Cx::new(0)).unwrap_err();
    assert_says(&error, &["does not speak TLS", "http://"]);
}

#[test]
fn a_redirect_from_https_to_http_is_refused_and_the_other_way_is_not() {
    let file = File::new(noise(1000, 1));
    let plain = Server::of(&file);
    let location = plain.url("/disk");
    let (tls, pem) = authority(&["http/1.1"]);
    let handler = move |_: &_| Some(Reply::redirect(&location));
    let server = Server::start_at("127.0.0.1:0", Some(tls), handler);
    let error = Http::open(&server.url("/disk"), &trusting(&pem), &Cx::new(0)).unwrap_err();
    assert_eq!((error.kind(), plain.asked().len()), (Kind::Denied, 0));
    assert_says(&error, &["from https to http"]);

    let (tls, pem) = authority(&["http/1.1"]);
    let secure = serve(&file, tls);
    let location = secure.url("/disk");
    let server = Server::start(move |_| Some(Reply::redirect(&location)));
    let http = Http::open(&server.url("/disk"), &trusting(&pem), &Cx::new(0)).unwrap();
    assert!(read(&http, 0, 1000) == file.bytes[..]);
}

/// Runs this test again, alone, with these variables; the parent's own proxies do not count.
fn again(name: &str, variables: &[(&str, &str)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("HTTP_TEST_CHILD", "1");
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command
            .env_remove(variable)
            .env_remove(variable.to_uppercase());
    }
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn is_child() -> bool {
    std::env::var_os("HTTP_TEST_CHILD").is_some()
}

#[test]
fn the_environment_names_the_authority() {
    if is_child() {
        let http = Http::open(&std::env::var("URL").unwrap(), &options(), &Cx::new(0)).unwrap();
        assert!(read(&http, 0, 1000) == noise(1000, 1));
        return;
    }
    let (tls, pem) = authority(&["http/1.1"]);
    let server = serve(&File::new(noise(1000, 1)), tls);
    let (url, ca) = (server.url("/disk"), pem.path().to_str().unwrap());
    again(
        "tls::the_environment_names_the_authority",
        &[("URL", &url), ("SSL_CERT_FILE", ca)],
    );
    assert_eq!(server.asked().len(), 1);
}

#[test]
fn the_environment_names_the_proxy() {
    if is_child() {
        let options = HttpOptions {
            proxy_from_env: true,
            ..options()
        };
        let http = Http::open("http://disks.invalid/disk", &options, &Cx::new(0)).unwrap();
        assert!(read(&http, 0, 1000) == noise(1000, 1));
        let url = std::env::var("URL").unwrap();
        let http = Http::open(&url, &options, &Cx::new(0)).unwrap();
        assert!(read(&http, 0, 10) == noise(10, 2));
        return;
    }
    let direct = Server::of(&File::new(noise(10, 2)));
    let proxy = Server::of(&File::new(noise(1000, 1)));
    let (address, url) = (proxy.url("/"), direct.url("/disk"));
    let variables = [
        ("http_proxy", &*address),
        ("no_proxy", "127.0.0.1"),
        ("URL", &*url),
    ];
    again("tls::the_environment_names_the_proxy", &variables);
    let asked: Vec<_> = proxy
        .asked()
        .into_iter()
        .map(|asked| asked.target)
        .collect();
    assert_eq!(asked, ["http://disks.invalid/disk"]);
    assert_eq!(direct.asked().len(), 1);
}
