//! Makes the code of the contract from its descriptors: `cargo run -- DESCRIPTORS DIRECTORY`.

use std::path::Path;
use std::{env, error, fs};

use prost::Message;
use tonic_prost_build::FileDescriptorSet;

fn main() -> Result<(), Box<dyn error::Error>> {
    let [descriptors, into] = &env::args().skip(1).collect::<Vec<_>>()[..] else {
        return Err("usage: generate DESCRIPTORS DIRECTORY".into());
    };
    let contract = FileDescriptorSet::decode(&fs::read(descriptors)?[..])?;
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .out_dir(into)
        .compile_fds(contract)?;
    fs::rename(Path::new(into).join("fastlane.v1.rs"), Path::new(into).join("v1.rs"))?;
    Ok(())
}
