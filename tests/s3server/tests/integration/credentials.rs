//! The servers that give out keys, asked as their clients ask.

use std::net::SocketAddr;

use s3server::Credentials;
use s3server::credentials::{CredentialServer, Kind};

use crate::raw::Client;

fn keys() -> Credentials {
    Credentials::new("AK", "SK").token("TOKEN")
}

fn client(server: &CredentialServer) -> Client {
    let url = server.url();
    let address: SocketAddr =
        url.trim_start_matches("http://").split('/').next().expect("host").parse().expect("address");
    Client::new(address)
}

#[test]
fn instance_metadata_wants_a_token() {
    let server = CredentialServer::start(Kind::Imds { role: "reader".into(), region: "eu-west-1".into() }, keys())
        .expect("start");
    let mut client = client(&server);
    let path = "/latest/meta-data/iam/security-credentials/";
    assert_eq!(client.get(path).status, 401);
    assert_eq!(client.ask("PUT", "/latest/api/token", &[], b"").status, 400);
    let token = client.ask("PUT", "/latest/api/token", &[("x-aws-ec2-metadata-token-ttl-seconds", "60")], b"").text();
    let header = [("x-aws-ec2-metadata-token", token.as_str())];
    assert_eq!(client.ask("GET", path, &header, b"").text(), "reader");
    let answer = client.ask("GET", &format!("{path}reader"), &header, b"").text();
    for part in [
        "\"Code\":\"Success\"",
        "\"AccessKeyId\":\"AK\"",
        "\"SecretAccessKey\":\"SK\"",
        "\"Token\":\"TOKEN\"",
        "\"Expiration\":\"20",
    ] {
        assert!(answer.contains(part), "{answer}");
    }
    assert_eq!(client.ask("GET", &format!("{path}other"), &header, b"").status, 404);
    assert_eq!(client.ask("GET", "/latest/meta-data/placement/region", &header, b"").text(), "eu-west-1");
    server.fail(500, 1);
    assert_eq!(client.get(path).status, 500);
    assert_eq!((server.issued(), server.requests()), (1, 8));
}

#[test]
fn containers_and_web_identities() {
    let kind = Kind::Container { path: "/creds".into(), authorization: Some("secret".into()) };
    let server = CredentialServer::start(kind, keys()).expect("start");
    let mut container = client(&server);
    assert_eq!(container.get("/creds").status, 401);
    assert_eq!(container.get("/other").status, 404);
    assert!(
        container.ask("GET", "/creds", &[("authorization", "secret")], b"").text().contains("\"AccessKeyId\":\"AK\"")
    );
    assert!(server.url().ends_with("/creds"));

    let kind = Kind::Sts { role_arn: "arn:aws:iam::1:role/r".into(), identity_token: "jwt".into() };
    let server = CredentialServer::start(kind, keys()).expect("start");
    let mut sts = client(&server);
    let form = "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=s&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&WebIdentityToken=";
    let answer = sts.ask("POST", "/", &[], format!("{form}jwt").as_bytes());
    assert_eq!(
        (answer.status, answer.elements("AccessKeyId"), answer.elements("SessionToken")),
        (200, vec!["AK".into()], vec!["TOKEN".into()])
    );
    assert_eq!(sts.get(&format!("/?{form}jwt")).status, 200);
    assert_eq!(sts.ask("POST", "/", &[], format!("{form}other").as_bytes()).code(), "InvalidIdentityToken");
    assert_eq!(
        sts.ask("POST", "/", &[], format!("{form}jwt").replace("role%2Fr", "role%2Fx").as_bytes()).code(),
        "AccessDenied"
    );
    assert_eq!(server.issued(), 2);
}
