#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| narwire::codec::base32::fuzz_base32(data));
