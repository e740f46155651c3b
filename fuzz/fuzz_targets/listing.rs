#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::nar::listing::fuzz_listing(data));
