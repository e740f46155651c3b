#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::nar::decode::fuzz_decode(data));
